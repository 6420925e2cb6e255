"""A hub on this machine: the part of the Hugging Face hub's protocol that `huggingface_hub` speaks to commit to and read a dataset, with faults.

Commits are atomic, answer 412 to a stale parent and 404 to the deletion of what is not there, and take no large file whose bytes were not uploaded
whole before (its SHA-256 is checked). `Faults` says how often a request is answered 429, 503, cut off before it is done, cut off after a commit was
taken, or preceded by somebody else's commit.
"""
import base64
import hashlib
import json
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass
class Faults:
    "Shares of requests; `seed` makes them the same sequence again (as far as requests come in the same order)."
    busy: float = 0.0  # 429, to be tried again at once
    broken: float = 0.0  # 503
    cut: float = 0.0  # the connection ends before anything was done; of an upload, half was read
    lost: float = 0.0  # a commit is taken, its answer never arrives
    foreign: float = 0.0  # somebody else commits first
    seed: int = 0
    seen: Counter = field(default_factory=Counter)
    script: list[str] = field(default_factory=list)  # faults of the next commits, in this order, before chance decides

    def __post_init__(self):
        self._chance, self._lock = random.Random(self.seed), threading.Lock()

    def draw(self, kinds):
        "The fault of this request, one of `kinds`, or nothing."
        with self._lock:
            if self.script and "lost" in kinds:
                fault = self.script.pop(0)
            else:
                at = self._chance.random()
                fault = ""
                for kind in kinds:
                    at -= getattr(self, kind)
                    if at < 0:
                        fault = kind
                        break
            self.seen[fault or "none"] += 1
            return fault


class Repo:
    "One dataset: its commits, the files of the newest, and large files by their SHA-256."

    def __init__(self, private):
        self.private, self.files, self.blobs, self.commits = private, {}, {}, []
        self.lock = threading.RLock()

    @property
    def head(self):
        return f"{len(self.commits) + 1:040x}"

    def apply(self, lines):
        "(status, answer) of a commit, as NDJSON says it: all of it or nothing."
        header, files, uploaded = {}, dict(self.files), {}
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                header = value
            elif key == "deletedFile":
                if value["path"] not in files:
                    return 404, {"error": f"A file with this name doesn't exist: {value['path']}"}
                del files[value["path"]]
            elif key == "lfsFile":
                if value["oid"] not in self.blobs:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                files[value["path"]] = value["oid"]
            else:
                content = base64.b64decode(value["content"])
                uploaded[hashlib.sha256(content).hexdigest()] = content
                files[value["path"]] = hashlib.sha256(content).hexdigest()
        if header.get("parentCommit") not in (None, self.head):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        self.blobs.update(uploaded)
        self.files = files
        self.commits.append(header)
        return 200, {"success": True, "commitOid": self.head, "commitUrl": f"http://127.0.0.1/datasets/x/y/commit/{self.head}"}

    def foreign_commit(self):
        "What another publisher does meanwhile."
        self.apply([{"key": "header", "value": {"summary": "somebody else's"}},
                    {"key": "file", "value": {"path": "notes.md", "content": base64.b64encode(str(len(self.commits)).encode()).decode()}}])


class Cut(Exception):
    "The connection ends here."


class Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version, server = "HTTP/1.1", None

    def log_message(self, *_):
        "Silence."

    def do(self):
        self.path_only = unquote(urlsplit(self.path).path)
        try:
            status, body, headers = self.route(self.body_after_faults())
        except Cut:
            self.close_connection = True
            self.connection.close()
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({} if isinstance(body, bytes) else {"content-type": "application/json"}).items() | headers.items():
            self.send_header(name, value)
        self.send_header("content-length", headers.get("x-size", str(len(data))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_HEAD = do

    def body_after_faults(self):
        "The request's body. Raises `Cut` when the connection ends before it was read."
        commit = "/commit/" in self.path_only
        kinds = ("busy", "broken", "cut", "lost", "foreign") if commit else ("busy", "broken", "cut")
        self.fault = self.hub.faults.draw(kinds)
        size = int(self.headers.get("content-length") or 0)
        if self.headers.get("transfer-encoding") == "chunked":
            return self.read_chunks()
        if self.fault == "cut":
            self.rfile.read(size // 2)
            raise Cut
        return self.rfile.read(size)

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        if self.fault == "cut":
            raise Cut
        return body

    def route(self, body):
        if self.fault == "busy":
            return 429, {"error": "rate limited"}, {"retry-after": "0"}
        if self.fault == "broken":
            return 503, {"error": "try later"}, {}
        if self.hub.token and self.headers.get("authorization") != f"Bearer {self.hub.token}" and not self.path_only.startswith("/_"):
            return 401, {"error": "Invalid credentials"}, {}
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, self.path_only):
                return getattr(self, method)(body, *found.groups())
        return 404, {"error": f"no route {self.path_only}"}, {}

    @property
    def hub(self):
        return self.server.hub

    def repo(self, name):
        return self.hub.repos.get(name)

    def missing(self, name):
        return 404, {"error": f"Repository not found: {name}"}, {"X-Error-Code": "RepoNotFound"}

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repos:
            return 409, {"error": "You already created this dataset repo", "url": f"{self.hub.url}/datasets/{name}"}, {}
        self.hub.repos[name] = Repo(bool(asked.get("private") or asked.get("visibility") == "private"))
        return 200, {"url": f"{self.hub.url}/datasets/{name}"}, {}

    def whoami(self, _):
        return 200, {"type": "user", "name": "me", "orgs": []}, {}

    def yaml(self, _):
        return 200, {"errors": [], "warnings": []}, {}

    def info(self, _, name, *__):
        if not (repo := self.repo(name)):
            return self.missing(name)
        with repo.lock:
            return 200, {"id": name, "_id": "0", "sha": repo.head, "private": repo.private, "disabled": False, "gated": False, "downloads": 0, "likes": 0,
                         "tags": [], "siblings": [{"rfilename": path} for path in repo.files], "createdAt": "2026-01-01T00:00:00.000Z",
                         "lastModified": "2026-01-01T00:00:00.000Z", "author": name.split("/")[0]}, {}

    def preupload(self, body, name, _):
        return 200, {"files": [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".parquet") else "regular", "shouldIgnore": False}
                               for f in json.loads(body)["files"]]}, {}

    def batch(self, body, name):
        repo = self.repo(name)
        objects = [{"oid": o["oid"], "size": o["size"], "authenticated": True} | ({} if o["oid"] in repo.blobs else {"actions": {
            "upload": {"href": f"{self.hub.url}/_lfs/{name}/{o['oid']}"}, "verify": {"href": f"{self.hub.url}/_verify/{name}/{o['oid']}"}}})
            for o in json.loads(body)["objects"]]
        return 200, {"transfer": "basic", "objects": objects}, {"content-type": "application/vnd.git-lfs+json"}

    def upload(self, body, name, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "not what was announced"}, {}
        self.repo(name).blobs[oid] = body
        return 200, b"", {}

    def verify(self, _, name, oid):
        return (200 if oid in self.repo(name).blobs else 404), {}, {}

    def commit(self, body, name, _):
        repo = self.repo(name)
        with repo.lock:
            if self.fault == "foreign":
                repo.foreign_commit()
            status, answer = repo.apply([json.loads(line) for line in body.splitlines()])
        if self.fault == "lost":
            raise Cut
        return status, answer, {}

    def described(self, repo, path):
        oid = repo.files[path]
        return {"type": "file", "path": path, "size": len(repo.blobs[oid]), "oid": oid[:40],
                "lfs": {"oid": oid, "size": len(repo.blobs[oid]), "pointerSize": 130}}

    def paths_info(self, body, name, _):
        asked = json.loads(body)["paths"] if body[:1] == b"{" else [value for key, value in parse_qsl(body.decode()) if key == "paths"]
        repo = self.repo(name)
        with repo.lock:
            return 200, [self.described(repo, path) for path in asked if path in repo.files], {}

    def tree(self, _, name, __, prefix=None):
        repo, start = self.repo(name), f"{prefix.strip('/')}/" if prefix else ""
        with repo.lock:
            found = [self.described(repo, path) for path in sorted(repo.files) if path.startswith(start)]
        return (200, found, {}) if found or not start else (404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})

    def resolve(self, _, name, __, path):
        if not (repo := self.repo(name)):
            return self.missing(name)
        if path not in repo.files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        oid = repo.files[path]
        data, headers = repo.blobs[oid], {"etag": f'"{oid}"', "x-repo-commit": repo.head, "accept-ranges": "bytes"}
        if (asked := self.headers.get("range")) and self.command == "GET":
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
            part = data[int(first):int(last or len(data) - 1) + 1]
            return 206, part, headers | {"content-range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"}
        return 200, data, headers


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    (r"/api/repos/create", "create"), (r"/api/whoami-v2", "whoami"), (r"/api/validate-yaml", "yaml"),
    (rf"/api/datasets/{NAME}/preupload/([^/]+)", "preupload"), (rf"/datasets/{NAME}\.git/info/lfs/objects/batch", "batch"),
    (rf"/_lfs/{NAME}/(\w+)", "upload"), (rf"/_verify/{NAME}/(\w+)", "verify"), (rf"/api/datasets/{NAME}/commit/([^/]+)", "commit"),
    (rf"/api/datasets/{NAME}/paths-info/([^/]+)", "paths_info"), (rf"/api/datasets/{NAME}/tree/([^/]+)(?:/(.*))?", "tree"),
    (rf"/api/datasets/{NAME}(?:/revision/([^/]+))?", "info"), (rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        "A client that was killed is no error of ours."


class LoopbackHub:
    "The server, as a context manager. `repos` maps owner/name to `Repo`; `token`, where set, is asked for."

    def __init__(self, faults=None, token=""):
        self.faults, self.token, self.repos = faults or Faults(), token, {}
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
