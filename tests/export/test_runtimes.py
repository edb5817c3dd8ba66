"""Exported graphs in C++: ONNX Runtime by its C API, and the code that ROOT's SOFIE makes of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from export.test_export import CYLINDER, card_of
from models.test_inference import trained_like

from calogen.export import export
from calogen.export.check import TRIAL, difference, reference
from calogen.export.onnx import onnx_model
from calogen.production.noise import normals
from calogen.runs.find import load_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'calogen[export]'")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'calogen[export]'")
HERE = Path(__file__).parent
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here, which these tests need")


def compiled(source: str, out: Path, *flags: str) -> Path:
    command = [COMPILER, "-std=c++17", "-O1", "-w", *flags, HERE / source, "-o", out, "-ldl"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    return out


def ran(program: Path, *words: object) -> None:
    done = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_par04s_call_from_cpp_makes_the_same_showers(tmp_path: Path) -> None:
    (library,) = (Path(runtime.__file__).parent / "capi").glob("libonnxruntime.so*")
    generator = trained_like(CYLINDER, ("incident_energy",))
    out = tmp_path / "p"
    facts = export(generator, card_of(CYLINDER, ("incident_energy",)), "par04", out)
    kept = np.load(out / TRIAL)
    vectors, expected = kept["vector"], kept["fractions"]
    vectors.tofile(tmp_path / "in")
    program = compiled("ort_run.cpp", tmp_path / "run")
    ran(program, library, out / facts["file"], tmp_path / "in", tmp_path / "out", vectors.shape[1], 60, len(vectors))
    made = np.fromfile(tmp_path / "out", np.float32).reshape(expected.shape)
    assert ((made > 0) != (expected > 0)).sum() <= 1
    np.testing.assert_allclose(made, expected, rtol=1e-2, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sofie_makes_the_same_showers(tmp_path: Path) -> None:
    sofie = pytest.importorskip("sofie", reason="sofie is not installed: pip install sofie")
    generator = load_model("calogan-gamma").generator()
    # SOFIE 0.1 cannot compile graphs whose batch is open.
    model = onnx.load_from_string(onnx_model(generator))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "gamma.onnx")
    assert sofie.onnx.check_model(str(tmp_path / "gamma.onnx"))
    parsed = sofie.onnx.parse(str(tmp_path / "gamma.onnx"))
    parsed.generate()
    parsed.output_generated(str(tmp_path / "sofie_gamma.hxx"))
    header = f'-DSOFIE_HEADER="{tmp_path / "sofie_gamma.hxx"}"'
    program = compiled("sofie_run.cpp", tmp_path / "run", header, "-DSOFIE_NAMESPACE=SOFIE_gamma")
    count, size = 200, generator.latent_size
    latents = normals(3, 0, count, size - generator.coarse, generator.coarse)
    energies = np.geomspace(1e3, 1e5, count).astype(np.float32)[:, None]
    (tmp_path / "in").write_bytes(latents.tobytes() + energies.tobytes())
    ran(program, tmp_path / "sofie_gamma.dat", tmp_path / "in", tmp_path / "out", size, count)
    made = np.fromfile(tmp_path / "out", np.float32).reshape(count, -1)
    found = difference(made, reference(generator, latents, energies), generator.family)
    print(f"\nSOFIE: {found}")
    assert found["largest_relative_above_1"] <= 3e-4
    assert found["on_in_one_only"] <= 1e-5
