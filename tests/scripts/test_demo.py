"""The demo's page in a real browser and its HTTP responses, compared with the detector."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from html import unescape

import cv2
import numpy as np
import pytest

from afl.predict import load_predictor
from afl.zoo import ZOO
from scripts import demo
from tests.reporting.browser import NAMES, OPTIONS

NAME = "zoo:fcos-shapes-afl"
IMAGE = sorted((ZOO / "images" / "shapes_lvis").glob("*.png"))[0]
PROBE = """<script>
window.problems = [];
addEventListener("error", (event) => window.problems.push(event.message));
const until = async (ready) => { while (!ready()) await new Promise((done) => setTimeout(done, 20)); };
const wait = setInterval(async () => {
  if (!document.body.dataset.done) return;
  clearInterval(wait);
  const card = document.querySelector("article"), pen = card.querySelector("canvas");
  const look = () => [card.querySelector(".count").textContent, pen.toDataURL().length];
  const set = (node, value, kind) => { node.value = value; node.dispatchEvent(new Event(kind)); };
  const seen = { problems, first: look() };
  set(document.getElementById("score"), 0.6, "input"); seen.strict = look();
  set(card.querySelector("select"), "0", "change"); seen.map = look();
  seen.options = card.querySelector("select").options.length; seen.width = pen.width;
  seen.knows = card.querySelector(".knows").textContent;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  // A second image, while the server has not answered yet, and then a file that is no image.
  const before = image, bare = Object.assign(document.createElement("canvas"), { width: pen.width, height: pen.height });
  const same = () => bare.toDataURL() === pen.toDataURL();
  window.detect = () => new Promise(() => {});
  show(await (await fetch(document.querySelectorAll("#samples img")[1].src)).blob());
  await until(() => image !== before);
  const brush = bare.getContext("2d"); brush.imageSmoothingEnabled = false;
  brush.drawImage(image, 0, 0, bare.width, bare.height); seen.without_boxes = same();
  seen.waiting = card.querySelector(".count").textContent;
  show(new Blob(["no image"]));
  await until(() => !image);
  brush.clearRect(0, 0, bare.width, bare.height); seen.cleared = same();
  const found = document.createElement("pre"); found.id = "seen"; found.textContent = JSON.stringify(seen);
  document.body.append(found);
}, 50);
</script></body>"""


@pytest.fixture(scope="module")
def predictor():
    return load_predictor(NAME, device="cpu")


@pytest.fixture
def address(predictor, monkeypatch):
    plain = demo.rendered
    monkeypatch.setattr(demo, "rendered", lambda *about: plain(*about).replace(b"</body>", PROBE.encode()))
    server = demo.make_server({NAME: predictor}, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_taken_port_gives_one_line(predictor, address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(
        ValueError, match=f"port={port} cannot be used: Address already in use; choose another"
    ):
        demo.make_server({NAME: predictor}, port)


def post(address: str, data: bytes, **headers: str) -> tuple[int, dict]:
    request = urllib.request.Request(f"{address}/detect/{NAME}", data=data, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_an_upload_returns_the_detections_and_the_score_maps(address, predictor):
    code, content = post(address, IMAGE.read_bytes())
    expected = predictor(IMAGE, score=0.05)
    assert code == 200 and content["scores"] == pytest.approx(expected.scores.tolist())
    np.testing.assert_allclose(content["boxes"], expected.boxes.numpy(), atol=1e-3)
    assert content["names"][0] == predictor.names[int(expected.labels[0])]
    maps = predictor.score_maps(IMAGE)
    assert [one["name"] for one in content["maps"]] == list(maps)
    assert max(one["highest"] for one in content["maps"] if one["name"].startswith("class")) > 0.5
    assert maps["class, stride 4"].shape == (24, 24)


def test_invalid_images_and_requests_of_other_pages_give_one_line(address):
    code, content = post(address, b"no image at all")
    assert code == 400 and content["error"].startswith("the image") and "/" not in content["error"]
    assert post(address, b"")[0] == 413
    code, content = post(address, IMAGE.read_bytes(), Origin="http://elsewhere.example")
    assert code == 403 and "another page" in content["error"]
    for path in ("/sample/../README.md", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)


@pytest.mark.parametrize("width", [1300, 420])
def test_a_visitor_sees_boxes_moves_the_score_and_opens_a_heat_map(address, predictor, tmp_path, width):
    browser = next((path for name in NAMES if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here; one of {', '.join(NAMES)} is needed")
    command = [
        browser, *OPTIONS, f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900", "--virtual-time-budget=20000",
        "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    seen = json.loads(unescape(match[1]))
    scores = predictor(IMAGE, score=0).scores
    for name, least in (("first", 0.3), ("strict", 0.6)):
        assert seen[name][0].startswith(f"{int((scores >= least).sum())} box")
    assert seen["knows"] == f"30 classes: {', '.join(predictor.names)}"
    assert len({seen[name][1] for name in ("first", "strict", "map")}) == 3  # three different pictures
    assert seen["options"] == 1 + len(predictor.score_maps(IMAGE)) and seen["problems"] == []
    # Neither boxes nor pictures of an earlier image are shown with the next one.
    assert seen["without_boxes"] and seen["waiting"] == "waiting" and seen["cleared"]
    assert seen["width"] >= cv2.imread(str(IMAGE)).shape[1] and seen["overflow"] <= 0


def test_at_most_six_detectors_of_one_data_set_are_shown():
    names = ["a-foda-afl", *(f"{kind}-shapes-{loss}" for kind in "abcdef" for loss in ("fl", "afl"))]
    assert demo.usual(names) == [f"{kind}-shapes-afl" for kind in "abcdef"]
    assert demo.usual([]) == []
