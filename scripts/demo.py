"""Show detectors side by side in the browser: an image, boxes with a score slider, heat maps.

    python -m scripts.demo                                            # the detectors of the zoo: http://127.0.0.1:7860
    python -m scripts.demo runs=[outputs/NAME,zoo:fcos-shapes-afl]    # your run and a detector of the zoo

Options:
    runs=[RUN,...]    run directories, checkpoints or zoo:NAME; default: up to six detectors of the zoo
    port=7860         the port; only this machine is served
    device=auto       auto (CUDA if available), cpu, cuda

Images are not stored. End the program with Ctrl-C.
"""

from __future__ import annotations

import http.server
import json
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from scripts.entry import asks_for_help, options_of, quiet_libraries, run_command

if TYPE_CHECKING:
    from afl.predict import Predictor

DEFAULTS = {"runs": list, "port": 7860, "device": "auto"}
MOST = 6  # detectors without the option runs
LARGEST = 30_000_000  # bytes of an upload
TEMPLATE = Path(__file__).with_name("demo.html")
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def main(arguments: list[str]) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    if asks_for_help(arguments, __doc__):
        return 0
    quiet_libraries()
    options = options_of(arguments, DEFAULTS)
    if not 0 <= options["port"] <= 65535:
        raise ValueError(f"port={options['port']} is not a port; it needs a number from 0 to 65535")
    from afl.predict import load_predictor
    from afl.zoo import names

    runs = options["runs"] or [f"zoo:{name}" for name in usual(names())]
    predictors = {str(run): load_predictor(run, device=options["device"]) for run in runs}
    server = make_server(predictors, options["port"])
    print(f"http://127.0.0.1:{server.server_port} shows {', '.join(predictors)}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


def usual(names: list[str]) -> list[str]:
    """Up to six names of one data set: that with most detectors, those with AFL before the others."""
    sets: dict[str, list[str]] = {}
    for name in names:
        sets.setdefault(name.split("-")[1], []).append(name)
    largest = max(sets.values(), key=len, default=[])
    return sorted(sorted(largest, key=lambda name: not name.endswith("-afl"))[:MOST])


def make_server(predictors: dict[str, Predictor], port: int) -> http.server.ThreadingHTTPServer:
    """The server, not started yet.

    Args:
        predictors: by the names that the page shows.
        port: 0 for any free one.

    Raises:
        ValueError: the port is taken or needs other rights.
    """
    samples = sample_images(predictors)
    page = rendered(predictors, samples)
    handler = partial(_Handler, predictors, samples, page, threading.Lock())
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        from datasets.errors import reason

        raise ValueError(
            f"port={port} cannot be used: {reason(error)}; choose another one, or port=0 for any free one"
        ) from error


def sample_images(predictors: dict[str, Predictor]) -> dict[str, Path]:
    """Images of the zoo that belong to the data sets of these detectors, at most four of each, by name."""
    from afl.zoo import ZOO

    found: dict[str, Path] = {}
    for dataset in dict.fromkeys(one.config.cell.dataset for one in predictors.values()):
        files = sorted(
            path for path in (ZOO / "images" / dataset).glob("*") if path.suffix in (".png", ".jpg")
        )
        found |= {f"{dataset}-{path.name}": path for path in files[:4]}
    return found


def rendered(predictors: dict[str, Predictor], samples: dict[str, Path]) -> bytes:
    """The page."""
    import jinja2

    from afl.tracking import names_afl
    from afl.zoo.files import NOTE

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shapes = [name for name, one in predictors.items() if one.config.cell.dataset.startswith("shapes")]
    afl = any(names_afl(one.config.cell.loss) for one in predictors.values())
    return template.render(
        detectors=[(name, one.names) for name, one in predictors.items()],
        samples=list(samples),
        shapes=shapes,
        note=NOTE if afl else "",
    ).encode()


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(
        self,
        predictors: dict[str, Predictor],
        samples: dict[str, Path],
        page: bytes,
        lock: threading.Lock,
        *arguments: Any,
    ) -> None:
        self._predictors, self._samples, self._page, self._lock = predictors, samples, page, lock
        super().__init__(*arguments)

    def do_GET(self) -> None:
        place = unquote(urlsplit(self.path).path)
        if place == "/":
            self._answer(200, "text/html; charset=utf-8", self._page)
        elif place.removeprefix("/sample/") in self._samples:
            path = self._samples[place.removeprefix("/sample/")]
            self._answer(200, f"image/{'png' if path.suffix == '.png' else 'jpeg'}", path.read_bytes())
        else:
            self._answer(404, "text/plain", b"there is nothing here")

    def do_POST(self) -> None:
        """The image in the body, to the detector that the path names."""
        name = unquote(urlsplit(self.path).path).removeprefix("/detect/")
        # Another page in the same browser must not send images here.
        if self.headers.get("Origin", "").removeprefix("http://") not in ("", self.headers.get("Host", "")):
            return self._fail(403, "the request comes from another page")
        if name not in self._predictors:
            return self._fail(404, f"there is no detector {name}")
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            return self._fail(411, "the length of the image is missing")
        if not 0 < length <= LARGEST:
            return self._fail(413, f"an image has up to {LARGEST // 1_000_000} MB")
        from afl.zoo.shown import shown
        from datasets import DataError, read_image_file

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image"
            file.write_bytes(self.rfile.read(length))
            try:
                pixels = read_image_file(file)
                with self._lock:  # one image at a time: a detector uses all cores
                    content = shown(self._predictors[name], pixels)
            except (DataError, ValueError, RuntimeError) as error:
                return self._fail(400, " ".join(str(error).replace(str(file), "the image").split())[:300])
        self._answer(200, "application/json", json.dumps(content).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not printed."""

    def _fail(self, code: int, message: str) -> None:
        self._answer(code, "application/json", json.dumps({"error": message}).encode())

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in {**SECURITY, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    run_command(main)
