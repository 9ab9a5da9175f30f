"""Broken scans, each a function that writes one, with what has to be said of it."""

import bz2
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

Maker = Callable[[Path], "list[Path] | None"]  # writes the file; returns more files of the case, if any
Corpus = dict[str, tuple[str, Maker]]  # file name -> (reason as a regular expression, maker)

IMAGE = np.random.default_rng(1).normal(200, 20, (16, 24, 24)).astype(np.float32)  # z, y, x


def _with(*values: float) -> np.ndarray:
    image = IMAGE.copy()
    image[3, 3, : len(values)] = values
    return image


def _colors(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 255, shape, np.uint8)


def _compress(content: bytes, file: Path) -> bytes:
    return gzip.compress(content, 1) if file.name.endswith(".gz") else content


def content(what: bytes) -> Maker:
    return lambda file: file.write_bytes(what) and None


def image(array: np.ndarray, spacing: tuple[float, ...] | None = None, is_vector: bool = False) -> Maker:
    """A file of any format that SimpleITK writes."""

    def make(file: Path) -> None:
        scan = sitk.GetImageFromArray(array, isVector=is_vector)
        if spacing is not None:
            scan.SetSpacing(spacing)
        sitk.WriteImage(scan, str(file))

    return make


def nifti(array: np.ndarray = IMAGE, **fields: tuple) -> Maker:
    """A NIfTI file whose header is patched: name of the field -> values from its start on."""
    places = {
        "dim": (40, "h"),
        "datatype": (70, "h"),
        "pixdim": (76, "f"),
        "vox_offset": (108, "f"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "srow": (280, "f"),
        "magic": (344, "4s"),
    }

    def make(file: Path) -> None:
        scan = bytearray(nibabel.Nifti1Image(array.T, np.eye(4), dtype=array.dtype).to_bytes())
        for field, values in fields.items():
            offset, kind = places[field]
            struct.pack_into(f"<{len(values)}{kind}" if kind != "4s" else "4s", scan, offset, *values)
        file.write_bytes(_compress(bytes(scan), file))

    return make


def nifti2(**fields: tuple) -> Maker:
    def make(file: Path) -> None:
        scan = bytearray(nibabel.Nifti2Image(IMAGE.T, np.eye(4)).to_bytes())
        struct.pack_into("<4q", scan, 16, *fields["dim"])
        file.write_bytes(_compress(bytes(scan), file))

    return make


def spoiled(maker: Maker, spoil: Callable[[bytes], bytes]) -> Maker:
    """A good file whose bytes are changed."""

    def make(file: Path) -> None:
        maker(file)
        file.write_bytes(spoil(file.read_bytes()))

    return make


def nrrd(header: str = "", voxels: bytes | None = None, **replaced: str) -> Maker:
    fields = {
        "type": "float",
        "dimension": "3",
        "sizes": "24 24 16",
        "space dimension": "3",
        "space directions": "(1,0,0) (0,1,0) (0,0,1)",
        "endian": "little",
        "encoding": "raw",
        **{key.replace("_", " "): value for key, value in replaced.items()},
    }
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + header + "\n"
    return content(text.encode() + (IMAGE.tobytes() if voxels is None else voxels))


def mha(voxels: bytes | None = None, **replaced: str) -> Maker:
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "ElementSpacing": "1 1 1",
        "DimSize": "24 24 16",
        "ElementType": "MET_FLOAT",
        "ElementDataFile": "LOCAL",
        **replaced,
    }
    text = "".join(f"{key} = {value}\n" for key, value in fields.items() if value)
    return content(text.encode() + (IMAGE.tobytes() if voxels is None else voxels))


def channels(one: Maker, other: Maker) -> Maker:
    def make(file: Path) -> list[Path]:
        second = file.with_name("second_" + file.name)
        one(file)
        other(second)
        return [second]

    return make


def _png(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def flip_in_the_middle(scan: bytes) -> bytes:
    """One byte of stored (not deflated) voxels, which only the checksum notices."""
    middle = len(scan) // 2
    return scan[:middle] + bytes([scan[middle] ^ 1]) + scan[middle + 1 :]


def _stored_gzip(file: Path) -> None:
    nifti()(file)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 0))


def _dicom(file: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE.astype(np.int16)[:1]), str(file.with_suffix(".dcm")))
    file.with_suffix(".dcm").rename(file)


HTML = b"<!DOCTYPE html>\n<html><head><title>Session expired</title></head></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345678\n"
SHEARED = (1.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)

SIMPLEITK: Corpus = {
    # not a scan at all
    "empty.nii.gz": ("empty", content(b"")),
    "gzip_of_nothing.nii.gz": ("cannot be read", content(gzip.compress(b""))),
    "text.nii.gz": ("cannot be read", content(b"this is no scan")),
    "error_page.nii.gz": ("cannot be read", content(HTML)),
    "pointer.nii.gz": ("cannot be read", content(POINTER)),
    "dicom.nii.gz": ("cannot be read", _dicom),
    "bzip2.nii.gz": ("cannot be read", spoiled(nifti(), bz2.compress)),
    "not_zipped.nii.gz": ("not a gzip file", spoiled(nifti(), gzip.decompress)),
    "zipped_twice.nii.gz": ("cannot be read", spoiled(nifti(), gzip.compress)),
    "zipped.nii": ("cannot be read", spoiled(nifti(), gzip.compress)),
    "wrong_magic.nii.gz": ("cannot be read", nifti(magic=(b"xyz\0",))),
    "error_page.nrrd": ("cannot be read", content(HTML)),
    "error_page.mha": ("cannot be read", content(HTML)),
    "empty.mha": ("empty", content(b"")),
    "unknown_ending.xyz": ("cannot be read", content(HTML)),
    # cut or changed on the way
    "cut.nii.gz": ("cannot be read", spoiled(nifti(), lambda scan: scan[: len(scan) // 2])),
    "cut_in_the_header.nii.gz": ("cannot be read", spoiled(nifti(), lambda scan: scan[:90])),
    "cut_checksum.nii.gz": ("cannot be read", spoiled(nifti(), lambda scan: scan[:-6])),
    "flipped_bit.nii.gz": ("cannot be read .*data check", spoiled(_stored_gzip, flip_in_the_middle)),
    "cut_plain.nii": ("cannot be read", spoiled(nifti(), lambda scan: scan[:2000])),
    "cut.nrrd": ("cannot be read", spoiled(nrrd(), lambda scan: scan[:-500])),
    "cut_gzip.nrrd": ("cannot be read", nrrd(encoding="gzip", voxels=gzip.compress(IMAGE.tobytes())[:-900])),
    "cut.mha": ("cannot be read", spoiled(mha(), lambda scan: scan[:-500])),
    "cut_zlib.mha": ("cannot be read", mha(zlib.compress(IMAGE.tobytes())[:-900], CompressedData="True")),
    # headers that claim what is not there
    "huge.nii.gz": ("claims", nifti(dim=(3, 30000, 30000, 30000))),
    "huge_plain.nii": ("claims", nifti(dim=(3, 30000, 30000, 30000))),
    "large.nii.gz": ("claims", nifti(dim=(3, 3000, 3000, 3000))),
    "huge_nifti2.nii.gz": ("claims", nifti2(dim=(3, 1 << 40, 1 << 40, 1 << 40))),
    "huge.nrrd": ("claims", nrrd(sizes="30000 30000 30000", voxels=b"")),
    "huge_gzip.nrrd": ("claims", nrrd(sizes="30000 30000 30000", encoding="gzip", voxels=gzip.compress(b"0"))),
    "huge.mha": ("claims", mha(b"", DimSize="30000 30000 30000")),
    "huge_zlib.mha": ("claims", mha(zlib.compress(b"0"), DimSize="30000 30000 30000", CompressedData="True")),
    "negative_extent.nii.gz": ("cannot be read|no voxel", nifti(dim=(3, -24, 24, 16))),
    "no_extent.nii.gz": ("cannot be read|no voxel", nifti(dim=(3, 24, 24, 0))),
    "no_extent.mha": ("cannot be read|no voxel", mha(DimSize="24 24 0")),
    "no_dimension.nii.gz": ("cannot be read|no voxel", nifti(dim=(0, 24, 24, 16))),
    "nine_dimensions.nii.gz": ("cannot be read", nifti(dim=(9, 24, 24, 16))),
    "voxels_past_the_end.nii.gz": ("cannot be read", nifti(vox_offset=(1e9,))),
    "voxels_at_nan.nii.gz": ("cannot be read", nifti(vox_offset=(np.nan,))),
    "voxels_before_the_file.nii.gz": ("cannot be read", nifti(vox_offset=(-352.0,))),
    "voxels_elsewhere.nii.gz": ("another file", nifti(magic=(b"ni1\0",))),
    "voxels_elsewhere.nrrd": ("another file", nrrd("data file: /dev/zero\n")),
    "voxels_elsewhere.mha": ("another file", mha(ElementDataFile="/dev/zero")),
    "voxels_in_a_list.mha": ("another file", mha(ElementDataFile="LIST")),
    # values
    "nan.nii.gz": ("contains NaN or infinite", nifti(_with(np.nan))),
    "infinite.nii.gz": ("contains NaN or infinite", nifti(_with(np.inf))),
    "minus_infinite.nii": ("contains NaN or infinite", nifti(_with(-np.inf))),
    "both_infinite.mha": ("contains NaN or infinite", mha(_with(-np.inf, np.inf).tobytes())),
    "nan.nrrd": ("contains NaN or infinite", nrrd(voxels=_with(np.nan).tobytes())),
    "all_nan.nii.gz": ("contains NaN or infinite", nifti(np.full_like(IMAGE, np.nan))),
    "too_large_for_float32.nii.gz": ("NaN or infinite|values up to", nifti(_with(0).astype(np.float64) * 1e300)),
    "largest_float32.nii.gz": ("values up to", nifti(_with(3.4e38, -3.4e38))),
    "largest_int64.nii.gz": ("values up to", nifti(_with(0).astype(np.int64) * (1 << 55))),
    "subnormal.nii.gz": ("constant", nifti(IMAGE * np.float32(1e-44))),
    "constant.nii.gz": (r"is constant \(7 everywhere\)", nifti(np.full_like(IMAGE, 7))),
    "zero.nii.gz": (r"is constant \(0 everywhere\)", nifti(np.zeros_like(IMAGE))),
    "zero.nrrd": (r"is constant \(0 everywhere\)", nrrd(voxels=bytes(IMAGE.nbytes))),
    "one_voxel.nii.gz": ("is constant", nifti(IMAGE[:1, :1, :1])),
    # kinds of voxels and of channels
    "complex.nii.gz": ("one number per voxel", nifti(IMAGE.astype(np.complex64))),
    "color.nii.gz": ("one number per voxel", image(_colors(16, 24, 24, 3), is_vector=True)),
    "color_slice.nrrd": ("one number per voxel", image(_colors(24, 24, 3), is_vector=True)),
    "tensor.mha": ("one number per voxel", image(_colors(16, 24, 24, 6), is_vector=True)),
    "unknown_type.nii.gz": ("cannot be read", nifti(datatype=(77,))),
    "four_dimensions.nii.gz": ("5 channels, but the dataset has 1", nifti(np.stack([IMAGE] * 5))),
    "five_dimensions.nii.gz": ("one number per voxel", nifti(np.stack([IMAGE] * 2)[:, None])),
    "one_dimension.nii.gz": ("cannot be read", nifti(dim=(1, 24, 1, 1))),
    "two_channels.nii.gz": ("2 channels, but the dataset has 1", channels(nifti(), nifti(IMAGE + 1))),
    "shapes_differ.nii.gz": ("same shape", channels(nifti(), nifti(IMAGE[:-1]))),
    "spacings_differ.nii.gz": ("same spacing", channels(nifti(), image(IMAGE, (1, 1, 1.5)))),
    "dimensions_differ.nii.gz": ("cannot be read", channels(nifti(), nifti(IMAGE[0]))),
    # geometry
    "no_spacing.nii.gz": ("spacing", nifti(pixdim=(1, 1, 0, 1))),
    "negative_spacing.nii.gz": ("spacing", nifti(pixdim=(1, 1, -1, 1))),
    "spacing_nan.nii.gz": ("spacing", nifti(pixdim=(1, 1, np.nan, 1))),
    "spacing_infinite.nii.gz": ("spacing", nifti(pixdim=(1, 1, np.inf, 1))),
    "spacing_large.nii.gz": ("spacing", nifti(pixdim=(1, 1, 1e30, 1), sform_code=(0,), qform_code=(1,))),
    "spacing_small.nii.gz": ("spacing", nifti(pixdim=(1, 1, 1e-30, 1), sform_code=(0,), qform_code=(1,))),
    "no_spacing.mha": ("spacing", mha(ElementSpacing="1 0 1")),
    "negative_spacing.mha": ("spacing", mha(ElementSpacing="1 -1 1")),
    "spacing_nan.mha": ("spacing|cannot be read", mha(ElementSpacing="1 nan 1")),
    "spacing_large.mha": ("spacing", mha(ElementSpacing="1 1e20 1")),
    "spacing_small.nrrd": ("spacing", nrrd(space_directions="(1e-20,0,0) (0,1,0) (0,0,1)")),
    "no_spacing.nrrd": ("spacing|cannot be read", nrrd(space_directions="(0,0,0) (0,1,0) (0,0,1)")),
    "sheared.nii.gz": ("cannot be read .*orthonormal", nifti(sform_code=(1,), srow=SHEARED)),
    "sheared.nrrd": ("orthonormal", nrrd(space_directions="(1,0,0) (0.5,1,0) (0,0,1)")),
    "sheared.mha": ("orthonormal", mha(TransformMatrix="1 0 0 0.5 1 0 0 0 1")),
    "flat.mha": ("cannot be read|orthonormal", mha(TransformMatrix="1 0 0 1 0 0 0 0 1")),
}

NIBABEL: Corpus = {
    "empty.nii": ("empty", content(b"")),
    "text.nii": ("cannot be read", content(HTML)),
    "cut.nii": ("cannot be read", spoiled(nifti(), lambda scan: scan[:2000])),
    "huge.nii": ("claims", nifti(dim=(3, 30000, 30000, 30000))),
    "huge_zipped.nii.gz": ("claims", nifti(dim=(3, 30000, 30000, 30000))),
    "nan.nii": ("contains NaN or infinite", nifti(_with(np.nan))),
    "no_spacing.nii": ("spacing", nifti(pixdim=(1, 1, 0, 1))),
    "negative_spacing.nii": ("spacing", nifti(pixdim=(1, 1, -1, 1))),
    "four_dimensions.nii": ("cannot be read .*3d", nifti(np.stack([IMAGE] * 2))),
    "complex.nii": ("one number per voxel", nifti(IMAGE.astype(np.complex64))),
    "no_extent.nii": ("cannot be read|no voxel", nifti(dim=(3, 24, 0, 16))),
    "spacings_differ.nii": ("same spacing", channels(nifti(), nifti(pixdim=(1, 1, 1, 1.5)))),
    "zero.nii": (r"is constant \(0 everywhere\)", nifti(np.zeros_like(IMAGE))),
}

_photo = _colors(24, 24)


def photo(array: np.ndarray, mode: str | None = None) -> Maker:
    return lambda file: Image.fromarray(array).convert(mode).save(file)


NATURAL: Corpus = {
    "empty.png": ("empty", content(b"")),
    "text.png": ("cannot be read", content(HTML)),
    "cut.png": ("cannot be read", spoiled(photo(_photo), lambda scan: scan[:200])),
    "flipped.png": ("cannot be read", spoiled(photo(_photo), flip_in_the_middle)),
    "huge.png": ("cannot be read|claims", content(_png(30000, 30000, b"0"))),
    "large.png": ("cannot be read|claims", content(_png(9000, 9000, b"0"))),
    "color.png": ("3 channels, but the dataset has 1", photo(np.stack([_photo] * 3, -1))),
    "transparent.png": ("cannot be read", photo(_photo, "LA")),
    "constant.png": ("is constant", photo(np.full_like(_photo, 9))),
    "shapes_differ.png": ("same shape", channels(photo(_photo), photo(_photo[1:]))),
    "cut.bmp": ("cannot be read", spoiled(photo(_photo), lambda scan: scan[:200])),
}


def tif(array: np.ndarray = IMAGE, spacing: str = '{"spacing": [1, 1, 1]}') -> Maker:
    """With the file beside it from which nnU-Net takes the spacing."""

    def make(file: Path) -> None:
        tifffile.imwrite(file, array)
        file.with_name(file.name.removesuffix("_0000.tif") + ".json").write_text(spacing)

    return make


def _tif_with_claim(file: Path) -> None:
    """Header of a large image over the body of a small one."""
    tifffile.imwrite(file, IMAGE[0])
    with tifffile.TiffFile(file, mode="r+b") as written:
        for tag in ("ImageLength", "ImageWidth"):
            written.pages[0].tags[tag].overwrite(1000000)


TIFF: Corpus = {
    "empty_0000.tif": ("empty", content(b"")),
    "text_0000.tif": ("cannot be read", content(HTML)),
    "cut_0000.tif": ("cannot be read", spoiled(tif(), lambda scan: scan[:-5000])),
    "slice_0000.tif": ("cannot be read .*3D", tif(IMAGE[0])),
    "huge_0000.tif": ("claims", _tif_with_claim),
    "nan_0000.tif": ("contains NaN or infinite", tif(_with(np.nan))),
    "complex_0000.tif": ("one number per voxel", tif(IMAGE.astype(np.complex64))),
    "spacing_text_0000.tif": ("spacing", tif(spacing='{"spacing": ["a", 1, 1]}')),
    "spacing_zero_0000.tif": ("spacing", tif(spacing='{"spacing": [0, 1, 1]}')),
    "spacing_of_two_0000.tif": ("spacing", tif(spacing='{"spacing": [1, 1]}')),
    "spacing_nan_0000.tif": ("spacing", tif(spacing='{"spacing": [NaN, 1, 1]}')),
    "spacing_null_0000.tif": ("cannot be read", tif(spacing='{"spacing": null}')),
    "spacing_malformed_0000.tif": ("cannot be read", tif(spacing="{")),
}

NO_FILES: Corpus = {
    "gone.nii.gz": ("does not exist", lambda file: None),
    "dangling.nii.gz": ("is a link to nothing", lambda file: file.symlink_to("nowhere.nii.gz")),
    "loop.nii.gz": ("is a link to nothing", lambda file: file.symlink_to(file)),
    "folder.nii.gz": ("is not a file", lambda file: file.mkdir()),
    "pipe.nii.gz": ("is not a file", lambda file: os.mkfifo(file)),
    "device.nii.gz": ("is not a file", lambda file: file.symlink_to("/dev/zero")),
    "x" * 300 + ".nii.gz": ("does not exist", lambda file: None),
}

if os.geteuid() != 0:  # whom nothing is forbidden
    SIMPLEITK["forbidden.nii.gz"] = ("cannot be read", lambda file: (nifti()(file), file.chmod(0))[1])
