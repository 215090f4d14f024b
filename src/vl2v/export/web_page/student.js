// The student in this page: what the page asks a server for is computed here, with onnxruntime-web.
"use strict";
(() => {
  const MOST = 64e6;  // pixels of an image
  const said = (status, body) => new Response(JSON.stringify(body), { status, headers: { "Content-Type": "application/json" } });
  const refused = words => said(400, { error: words });
  const floats = text => new Float32Array(Uint8Array.from(atob(text), sign => sign.charCodeAt(0)).buffer);
  const network = fetch.bind(window);

  // The service worker fetches every file once and hands it to the page from its cache. Without one (a reload that
  // goes around it, a browser that stores nothing) the page fetches for itself.
  async function installed() {
    const registration = await navigator.serviceWorker?.register("sw.js");
    const worker = registration?.installing ?? registration?.waiting;
    if (!worker || navigator.serviceWorker.controller) return;
    const settled = () => ["activated", "redundant"].includes(worker.state);
    await new Promise(done => {
      worker.addEventListener("statechange", () => settled() && done());
      if (settled()) done();
    });
  }

  const ready = (async () => {
    await installed().catch(error => console.warn(error));
    const [card, more] = await Promise.all(["student.json", "classes.json"].map(async name => (await network(name)).json()));
    ort.env.wasm.numThreads = 1;  // more would need headers that static hosts don't send
    ort.env.wasm.wasmPaths = new URL("./", document.baseURI).href;
    const packed = (await network("ort-wasm.bin")).body.pipeThrough(new DecompressionStream("gzip"));
    ort.env.wasm.wasmBinary = await new Response(packed).arrayBuffer();
    const session = await ort.InferenceSession.create(card.files[0].name);
    const open = card.form === "open";
    const width = open ? floats(card.class_embeddings).length / card.classes.length : 0;
    const vectors = open ? floats(card.class_embeddings) : null;
    const classes = card.classes.map((name, i) => ({ name, vector: open ? vectors.subarray(i * width, (i + 1) * width) : null }));
    const others = new Map(Object.entries(more).map(([name, text]) => [name, floats(text)]));
    for (const { name, vector } of classes) if (vector) others.set(name, vector);  // what is removed can come back
    return { card, session, open, classes, others };
  })();
  ready.catch(() => {});  // each request says so

  async function pixels(file) {  // uint8 RGB [h, w, 3]: turned as EXIF says, transparency on white, not resized
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const { width, height } = bitmap;
    if (width * height > MOST) throw new RangeError("it has more than 64 megapixels");
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const paper = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    paper.fillStyle = "white";
    paper.fillRect(0, 0, width, height);
    paper.drawImage(bitmap, 0, 0);
    bitmap.close();
    const rgba = paper.getImageData(0, 0, width, height).data, rgb = new Uint8Array(3 * width * height);
    for (let from = 0, to = 0; to < rgb.length; from += 4) {
      rgb[to++] = rgba[from];
      rgb[to++] = rgba[from + 1];
      rgb[to++] = rgba[from + 2];
    }
    return new ort.Tensor("uint8", rgb, [height, width, 3]);
  }

  function softmax(logits) {
    const most = Math.max(...logits), powers = logits.map(each => Math.exp(each - most));
    const sum = powers.reduce((one, other) => one + other, 0);
    return powers.map(each => each / sum);
  }

  async function predict({ card, session, open, classes }, file) {
    let image;
    try {
      image = await pixels(file);
    } catch (error) {
      return refused(`this image can't be read${error instanceof RangeError ? `: ${error.message}` : ""}`);
    }
    const out = await session.run({ image }, open ? ["embedding"] : ["probabilities"]);
    let shares;
    if (open) {
      const z = out.embedding.data;
      shares = softmax(classes.map(({ vector }) => card.scale * vector.reduce((sum, each, i) => sum + each * z[i], 0) / card.temperature));
    } else shares = Array.from(out.probabilities.data);
    const best = shares.indexOf(Math.max(...shares)), name = classes[best].name;
    const probabilities = Object.fromEntries(classes.map((each, i) => [each.name, shares[i]]));
    const label = shares[best] >= card.threshold ? name : "unknown";
    return said(200, { predictions: [{ label, best: name, probability: shares[best], probabilities }] });
  }

  function listed({ open, classes, others }) {
    const names = classes.map(each => each.name), left = [...others.keys()].filter(name => !names.includes(name)).sort();
    const list = document.getElementById("others") ?? document.body.appendChild(Object.assign(document.createElement("datalist"), { id: "others" }));
    list.replaceChildren(...left.map(name => Object.assign(document.createElement("option"), { value: name })));
    document.getElementById("name").setAttribute("list", "others");
    const why = open ? "all that this page has are there" : "they are part of the network";
    return said(200, { classes: names, obstacle: left.length ? null : why });
  }

  function added(student, wanted) {
    const same = name => name.normalize("NFKC").trim().replace(/[\s_]+/g, " ").toLowerCase();
    const found = [...student.others.keys()].find(name => same(name) === same(wanted));
    if (student.classes.some(({ name }) => same(name) === same(wanted))) return refused(`${wanted} is there already`);
    if (found === undefined) return refused(`this page has no class embedding of ${wanted}; the field suggests those that it has`);
    student.classes.push({ name: found, vector: student.others.get(found) });
    return listed(student);
  }

  function removed(student, name) {
    const index = student.classes.findIndex(each => each.name === name);
    if (index < 0 || student.classes.length === 1) return refused(index < 0 ? `there is no class ${name}` : `${name} is the only class left`);
    student.classes.splice(index, 1);
    return listed(student);
  }

  window.fetch = async (path, options = {}) => {
    const method = options.method ?? "GET", name = String(path).match(/^classes\/(.+)$/)?.[1];
    if (!["about", "classes", "predict"].includes(path) && !name) return network(path, options);
    let student;
    try {
      student = await ready;
    } catch (error) {
      console.warn(error);
      return refused("the student can't be loaded; reload the page");
    }
    if (path === "predict") return predict(student, options.body.get("image"));
    if (name) return removed(student, decodeURIComponent(name));
    if (path === "classes") return method === "POST" ? added(student, JSON.parse(options.body).name) : listed(student);
    const { form, precision, image_size, threshold } = student.card;
    return said(200, { model: "student", form, precision, image_size, threshold, images: 1, bytes: 1e9, teacher: null });
  };
})();
