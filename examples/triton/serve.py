"""The credit model in two servers: its features here, its network in the real Triton. Ends both on Ctrl-C.

    make triton
"""

import argparse
import shutil
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "bench"))
import real_triton
from real_triton import RealTriton

HERE = Path(__file__).resolve().parent
MODEL = """\
runtime = "triton"

[triton]
url = "grpc://127.0.0.1:{port}"
"""


def lay_out(sample: Path, out: Path) -> None:
    """Train, import, and put what fastinfer reads beside what Triton reads."""
    run = [sys.executable, str(HERE / "train.py"), "--sample", str(sample), "--out", str(out)]
    subprocess.run(run, check=True)
    fastinfer("import", str(out / "network.joblib"), "--out", str(out / "imported"), "--sample", str(sample),
              "--trust-pickle").check_returncode()
    here, there = out / "models" / "credit", out / "triton" / "credit"
    here.mkdir(parents=True)
    (there / "1").mkdir(parents=True)
    shutil.copyfile(out / "imported" / "features.json", here / "features.json")
    shutil.copyfile(out / "imported" / "model.onnx", there / "1" / "model.onnx")
    shutil.copyfile(HERE / "model.py", there / "1" / "model.py")
    shutil.copyfile(HERE / "config.pbtxt", there / "config.pbtxt")


def fastinfer(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-P", "-m", "fastinfer", *arguments])


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the credit model's features here and its network in Triton.")
    parser.add_argument("--sample", type=Path, default=Path(".demo/sample.parquet"), metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path(".demo/triton"), metavar="DIR", help="folder for all of it")
    parser.add_argument("--port", default="8000", help="of fastinfer")
    options = parser.parse_args()
    if absent := real_triton.why_absent():
        sys.exit(absent)
    shutil.rmtree(options.out, ignore_errors=True)
    lay_out(options.sample, options.out)
    triton = RealTriton(options.out / "server", options.out / "triton")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        triton.start("credit")
        print(f"Triton answers on http://127.0.0.1:{triton.http} and grpc://127.0.0.1:{triton.grpc}", flush=True)
        (options.out / "models" / "credit" / "model.toml").write_text(MODEL.format(port=triton.grpc))
        models = str(options.out / "models")
        command = [sys.executable, "-P", "-m", "fastinfer", "serve", models, "--port", options.port]
        with subprocess.Popen(command) as server:
            try:
                return server.wait()
            except KeyboardInterrupt:
                server.terminate()
                return server.wait()
    finally:
        triton.stop()


if __name__ == "__main__":
    sys.exit(main())
