"""What miner and shared service say of their interfaces, and hundreds of requests made from that: none may end in a 5xx."""
from urllib.parse import urlsplit

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given
from live_miner import live_miner, live_service
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from omega_lab.chain.synapse import request_headers
from omega_lab.embedding import get_encoder

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = ["POST /v1/videos", "GET /v1/media/{sha}", "POST /Videos", "GET /healthz", "GET /metrics"]
FEW, MANY = 4, 100
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # the library's own


@pytest.fixture(scope="module")
def miner(tmp_path_factory):
    with live_miner(tmp_path_factory.mktemp("miner")) as live:
        yield live


@pytest.fixture(scope="module")
def schema(miner):
    return schemathesis.openapi.from_url(f"{miner.url}/openapi.json")


def signed(miner, request: requests.PreparedRequest) -> None:
    "Sign what is about to be sent as an entitled validator does, whatever headers were made up."
    port = urlsplit(miner.url).port
    if request.path_url.startswith("/Videos"):
        headers = request_headers(miner.wallets["validator"].hotkey, miner.hotkey, "127.0.0.1", port, 12.0)
    else:
        headers = miner.headers(request.method, request.path_url, request.body or b"")
    for name in [n for n in request.headers if n.lower().startswith(("x-bittensor", "bt_header"))]:
        del request.headers[name]
    request.headers.update(headers)


def play(miner, schema, operation: str, mode: GenerationMode, sign: bool, examples: int, fit=lambda case: None) -> dict[int, int]:
    """Send `examples` requests, each made to `fit` first; how many came back with which status.

    To JSON Schema 4.0 is an integer, to the wire it is not: such a request is turned away and counted as 0.
    """
    method, path = operation.split()
    seen: dict[int, int] = {}

    @hypothesis.settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def send(case):
        fit(case)
        request = requests.Request(**case.as_transport_kwargs(base_url=miner.url)).prepare()
        request.body = request.body.encode() if isinstance(request.body, str) else request.body
        if sign:
            signed(miner, request)
        with requests.Session() as session:
            response = session.send(request, timeout=60)
        status = 0 if "num_videos: Input should be a valid integer" in response.text else response.status_code
        seen[status] = seen.get(status, 0) + 1
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=CHECKS)

    send()
    return seen


def test_the_description_names_everything(schema):
    described = {f"{o.ok().method.upper()} {o.ok().path}" for o in schema.get_all_operations()}
    assert described == set(OPERATIONS)
    videos = schema["/v1/videos"]["POST"].definition.raw
    assert {p["name"] for p in videos["parameters"]} >= {"X-Bittensor-Hotkey", "X-Bittensor-Signature"}
    assert set(videos["responses"]) >= {"200", "401", "403", "409", "413", "422", "429", "503"}


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
@pytest.mark.parametrize("operation", ["POST /v1/videos", "POST /Videos"])
def test_what_is_allowed_and_signed_is_answered(miner, schema, operation, examples):
    seen = play(miner, schema, operation, GenerationMode.POSITIVE, True, examples)
    assert set(seen) <= {200, 0} and seen[200] >= examples // 2


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize("operation", OPERATIONS[:3])
def test_what_is_not_properly_signed_is_refused(miner, schema, operation, mode, examples):
    assert set(play(miner, schema, operation, mode, False, examples)) <= {401, 403, 422}


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
@pytest.mark.parametrize("operation", OPERATIONS[:3])
def test_a_validator_that_sends_anything_at_all(miner, schema, operation, examples):
    assert set(play(miner, schema, operation, GenerationMode.NEGATIVE, True, examples)) <= {0, 200, 401, 404, 422}


@pytest.mark.parametrize("operation", OPERATIONS[3:])
def test_what_anyone_may_read(miner, schema, operation):
    assert set(play(miner, schema, operation, GenerationMode.POSITIVE, False, 5)) == {200}


# ---- the shared service

SERVICE = ["POST /api/get_pinecone_novelty", "POST /api/upload_video_metadata", "POST /api/upload_audio_metadata", "POST /api/get_proxy",
           "GET /api/check_score"]
PUBLIC = ["GET /api/mm/topic_relevant/{topic}", "GET /api/leaderboard", "GET /api/mm/topics", "GET /api/mm/topic_video_count", "GET /healthz", "GET /metrics"]
PAGES = ["GET /", "GET /dashboard", "GET /leaderboard", "GET /miners/{hotkey}", "GET /dataset", "GET /rounds", "GET /rounds/{id}", "GET /style.css",
         "GET /icon.svg", "GET /favicon.ico"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with live_service(tmp_path_factory.mktemp("service")) as live:
        yield live


@pytest.fixture(scope="module")
def doors(service):
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def fitting(service):
    "Makes a made-up message one that the service can use: its latent space, a hotkey that is one, vectors of the right length."
    space = requests.get(service.url + "/healthz", timeout=60).json()["encoder"]
    dim = get_encoder(space.partition("@")[0]).dim

    def stretch(vector):
        return (vector * dim)[:dim] if isinstance(vector, list) and vector else vector

    def fit(case):
        body = case.body
        if not isinstance(body, dict) or "encoder" not in body:
            return
        body |= {"encoder": space, "miner": service.wallets["miner"].hotkey.ss58_address}
        body |= {"embeddings": [stretch(v) for v in body["embeddings"]]} if "embeddings" in body else {}
        for clip in body.get("clips", []):
            clip |= {name: stretch(clip[name]) if clip.get("accepted") else None for name in ("video_emb", "audio_emb", "description_emb") if name in clip}
    return fit


def test_the_service_describes_everything(doors):
    assert {f"{o.ok().method.upper()} {o.ok().path}" for o in doors.get_all_operations()} == {*SERVICE, *PUBLIC, *PAGES}


@pytest.mark.parametrize("examples", [FEW // 2, pytest.param(MANY // 2, marks=pytest.mark.full)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize("sign", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("operation", SERVICE)
def test_no_request_breaks_the_service(service, doors, operation, sign, mode, examples):
    fit = fitting(service) if mode == GenerationMode.POSITIVE and sign else lambda case: None
    seen = play(service, doors, operation, mode, sign, examples, fit)
    assert sign or set(seen) <= {401, 403, 413, 422}


@pytest.mark.parametrize("operation", PUBLIC)
def test_what_anyone_may_read_of_the_service(service, doors, operation):
    assert set(play(service, doors, operation, GenerationMode.POSITIVE, False, 3)) == {200}


@pytest.mark.parametrize(("operation", "mode"), [(o, GenerationMode.POSITIVE) for o in PAGES] + [(o, GenerationMode.NEGATIVE) for o in PAGES[2:7]])
def test_no_address_breaks_a_page(service, doors, operation, mode):
    assert set(play(service, doors, operation, mode, False, 20)) <= {0, 200, 404, 422}
