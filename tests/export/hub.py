"""The Hugging Face hub on loopback, as far as its own client needs it to make, fill and read a model repository."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from loopback import Loopback

LARGE = (".safetensors", ".onnx")  # what the hub keeps as large files
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "other")  # of those that it knows
Tree = dict[str, bytes]


class Hub(Loopback):
    """Repositories with every commit, the large files, and the account whose token may write."""

    def __init__(self, user: str, token: str) -> None:
        self.user, self.token = user, token
        self.commits: dict[str, dict[str, Tree]] = {}  # repository -> commit -> files
        self.private: set[str] = set()
        self.large: Tree = {}
        super().__init__(_app(self))

    def head(self, repo: str) -> tuple[str, Tree]:
        """Return the newest commit and its files."""
        return list(self.commits[repo].items())[-1]

    def commit(self, repo: str, files: Tree) -> str:
        """Add a commit with just these files."""
        number = str(len(self.commits.setdefault(repo, {})))
        name = hashlib.sha1((repo + number).encode()).hexdigest()
        self.commits[repo][name] = files
        return name


def _app(hub: Hub) -> FastAPI:
    app = FastAPI()

    def is_owner(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {hub.token}"

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        given = await request.json()
        repo = f"{given['organization']}/{given['name']}"
        if not is_owner(request):
            return _refusal(401, "", "Invalid username or password.")
        if given["organization"] != hub.user:
            return _refusal(403, "", "You don't have the rights to create a model under this namespace")
        if repo in hub.commits:
            return JSONResponse({"error": "You already created this model repo", "url": f"{hub.url}/{repo}"}, 409)
        hub.commit(repo, {".gitattributes": b""})
        if given.get("visibility") == "private":
            hub.private.add(repo)
        return JSONResponse({"url": f"{hub.url}/{repo}"})

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Response:
        _, front, _ = (await request.json())["content"].split("---\n", 2)
        known = yaml.safe_load(front).get("license") in LICENCES
        problem = "" if known else f'"license" must be one of [{", ".join(LICENCES)}]'
        if request.headers.get("accept") == "text/plain":
            return PlainTextResponse(problem and f"- Error: {problem}", 200 if known else 400)
        return JSONResponse({"errors": [] if known else [{"message": problem}], "warnings": []}, 200 if known else 400)

    @app.get("/api/models/{user}/{name}")
    def about(user: str, name: str, request: Request) -> Response:
        repo = f"{user}/{name}"
        return closed(repo, request) or JSONResponse({"id": repo, "private": repo in hub.private})

    @app.get("/api/models/{user}/{name}/tree/main")
    def tree(user: str, name: str, request: Request) -> Response:
        if refused := closed(f"{user}/{name}", request):
            return refused
        _, files = hub.head(f"{user}/{name}")
        return JSONResponse([{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()])

    @app.post("/api/models/{user}/{name}/preupload/main")
    async def preupload(user: str, name: str, request: Request) -> Response:
        if refused := closed(f"{user}/{name}", request, writing=True):
            return refused
        paths = [file["path"] for file in (await request.json())["files"]]
        modes = [("lfs" if path.endswith(LARGE) else "regular") for path in paths]
        files = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in zip(paths, modes, strict=True)]
        return JSONResponse({"files": files})

    @app.post("/{user}/{name}.git/info/lfs/objects/batch")
    async def batch(user: str, name: str, request: Request) -> Response:
        if refused := closed(f"{user}/{name}", request, writing=True):
            return refused
        wanted = (await request.json())["objects"]
        for thing in wanted:
            if thing["oid"] not in hub.large:
                thing["actions"] = {"upload": {"href": f"{hub.url}/large/{thing['oid']}"}}
        return JSONResponse({"transfer": "basic", "objects": wanted})

    @app.put("/large/{oid}")
    async def upload(oid: str, request: Request) -> Response:
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != oid:
            return _refusal(422, "", "another content")
        hub.large[oid] = data
        return Response()

    @app.post("/api/models/{user}/{name}/commit/main")
    async def commit(user: str, name: str, request: Request) -> Response:
        repo = f"{user}/{name}"
        if refused := closed(repo, request, writing=True):
            return refused
        files = dict(hub.head(repo)[1])
        for line in (await request.body()).splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        made = hub.commit(repo, files)
        return JSONResponse({"commitUrl": f"{hub.url}/{repo}/commit/{made}", "commitOid": made, "success": True})

    @app.api_route("/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(user: str, name: str, revision: str, path: str, request: Request) -> Response:
        repo = f"{user}/{name}"
        if refused := closed(repo, request):
            return refused
        made = hub.head(repo)[0] if revision == "main" else revision
        if made not in hub.commits[repo]:
            return _refusal(404, "RevisionNotFound", "Invalid rev id")
        files = hub.commits[repo][made]
        if path not in files:
            return _refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": made})
        data = files[path]
        etag = hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else _oid(data)
        return Response(data, headers={"X-Repo-Commit": made, "ETag": f'"{etag}"'})

    def closed(repo: str, request: Request, *, writing: bool = False) -> Response | None:
        hidden = repo not in hub.commits or repo in hub.private
        if not is_owner(request) and (hidden or writing):
            return _refusal(401, "RepoNotFound", "Repository not found")
        if repo not in hub.commits:
            return _refusal(404, "RepoNotFound", "Repository not found")
        return None

    return app


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _refusal(status: int, code: str, message: str, headers: Any = None) -> JSONResponse:
    error = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}
    return JSONResponse({"error": message}, status, {**error, **(headers or {})})
