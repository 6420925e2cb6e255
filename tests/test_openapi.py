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

from omega_lab.chain.rules import account_of
from omega_lab.chain.synapse import request_headers
from omega_lab.embedding import get_encoder
from omega_lab.focus.market import Market
from omega_lab.focus.tables import make_key, open_database
from omega_lab.focus.task import make_task
from omega_lab.settings import MarketSettings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = ["POST /v1/videos", "GET /v1/media/{sha}", "POST /Videos", "GET /healthz", "GET /metrics"]
FEW, MANY = 4, 100
LISTED = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
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
    for name in [n for n in request.headers if n.lower().startswith(("x-bittensor", "bt_header", "x-api-key"))]:
        del request.headers[name]
    request.headers.update(headers)


def play(miner, schema, operation: str, mode: GenerationMode, sign: bool, examples: int, fit=lambda case: None, key: str = "") -> dict[int, int]:
    """Send `examples` requests, each made to `fit` first, signed or with a `key`; how many came back with which status.

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
        elif key:
            request.headers["X-API-Key"] = key
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
    assert set(seen) <= {200, 0} and seen[200] >= examples // 4  # hypothesis draws from the numbers in our code: of a few, many may be like 4.0


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
APP = [f"{method} /api/focus/{name}" for method, name in (
    ("GET", "tasks"), ("POST", "nonce"), ("POST", "recordings"), ("GET", "recordings/{video_id}/film"), ("PUT", "recordings/{video_id}/film"),
    ("GET", "get_focus_score"), ("POST", "get_focus_score"), ("POST", "get_score_direct"), ("POST", "submit"), ("POST", "withdraw"))]
BUYER = [f"{method} /api/focus/{name}" for method, name in (
    ("GET", "get_list"), ("POST", "purchase"), ("POST", "verify-purchase"), ("GET", "purchases"), ("GET", "purchased/{video_id}"),
    ("GET", "miner_purchase_scores"), ("GET", "miner_purchase_scores/{hotkeys}"))]
OPERATOR = [f"{method} /api/focus/{name}" for method, name in (
    ("GET", "review"), ("POST", "review"), ("POST", "take_down"), ("GET", "refunds"), ("POST", "refunded"), ("POST", "unban"))]
NUMBERS = [f"GET /api/focus/get_{name}" for name in ("rewards_percent", "task_percentage_map", "max_focus_alpha", "variable_reward_pool_alpha",
                                                     "fixed_reward_pool_alpha", "alpha_to_tao_rate")]
SHOP = ["GET /recordings", "GET /recordings/{id}", "GET /recordings/{id}/frames/{n}", "GET /market", "GET /review"]
DESK = ["POST /review/sign-in", "POST /review/sign-out", "GET /review/{id}", "POST /review/{id}", "GET /review/{id}/frames/{n}", "GET /review/{id}/film"]
PAGES = ["GET /", "GET /dashboard", "GET /leaderboard", "GET /miners/{hotkey}", "GET /dataset", "GET /rounds", "GET /rounds/{id}", "GET /style.css",
         "GET /icon.svg", "GET /favicon.ico"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with live_service(tmp_path_factory.mktemp("service")) as live:
        yield live


@pytest.fixture(scope="module")
def doors(service):
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


@pytest.fixture(scope="module")
def shop(service):
    "Keys of the API by role, and a recording that is for sale."
    market = Market(open_database(service.state / "market.sqlite"), MarketSettings())
    keys = {role: make_key(market.engine, role, role) for role in ("app", "operator", "buyer")}
    market.announce(LISTED, "app", "eve", make_task("Shopping list", "Write a shopping list with prices."), "list.mp4", 10)
    market.uploaded(LISTED, "ab" * 32, 10)
    market.judged(LISTED, "READY", "good", 0.8, 0.8, 10**6, 75.0)
    market.submit(LISTED, "owner", 10**6, account_of("//Owner"), False)
    yield keys
    assert market.differences() == []
    market.engine.dispose()


def known(case):
    "Makes a made-up request one about the recording that is there."
    if isinstance(case.body, dict) and "video_id" in case.body:
        case.body["video_id"] = LISTED
    if "video_id" in (case.path_parameters or {}):
        case.path_parameters["video_id"] = LISTED


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
    assert {f"{o.ok().method.upper()} {o.ok().path}" for o in doors.get_all_operations()} == {
        *SERVICE, *PUBLIC, *PAGES, *APP, *BUYER, *OPERATOR, *NUMBERS, *SHOP, *DESK}


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


# ---- the market

MODES = [(GenerationMode.POSITIVE, True), (GenerationMode.POSITIVE, False), (GenerationMode.NEGATIVE, False)]
FINE = {0, 200, 206, 402, 403, 404, 409, 413, 416, 422}


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY // 2, marks=pytest.mark.full)])
@pytest.mark.parametrize(("mode", "about"), MODES, ids=["allowed", "unknown", "forbidden"])
@pytest.mark.parametrize(("role", "operation"), [*(("app", o) for o in APP), *(("hotkey", o) for o in BUYER), *(("buyer", o) for o in BUYER[:5]),
                                                 *(("operator", o) for o in OPERATOR)])
def test_no_request_breaks_the_market(service, doors, shop, role, operation, mode, about, examples):
    fit = known if about else lambda case: None
    assert set(play(service, doors, operation, mode, role == "hotkey", examples, fit, shop.get(role, ""))) <= FINE


@pytest.mark.parametrize("operation", [*APP, *BUYER, *OPERATOR])
def test_without_a_name_nothing_is_done(service, doors, shop, operation):
    assert set(play(service, doors, operation, GenerationMode.POSITIVE, False, FEW, known)) <= {401, 403, 413, 422}


@pytest.mark.parametrize("operation", NUMBERS)
def test_the_numbers_of_the_day(service, doors, operation):
    assert set(play(service, doors, operation, GenerationMode.POSITIVE, False, 3)) == {200}


@pytest.mark.parametrize("operation", SHOP + DESK)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
def test_no_request_breaks_the_shop(service, doors, operation, mode):
    if mode == GenerationMode.NEGATIVE and operation in ("GET /recordings", "GET /market", "GET /review"):
        return  # every query is allowed there
    assert set(play(service, doors, operation, mode, False, 8)) <= {0, 200, 401, 403, 404, 413, 422}
