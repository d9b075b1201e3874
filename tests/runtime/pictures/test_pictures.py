"""Picture files in and out: nothing is lost that the format can hold."""

import io
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from esrgan_deploy import MediaError
from esrgan_deploy.runtime import Picture, read_picture, write_picture
from esrgan_deploy.runtime.pictures import check_fits, check_output
from esrgan_deploy.runtime.pictures._png import png_facts

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def camera_exif(orientation: int = 6) -> Image.Exif:
    """What a camera writes: orientation, sizes, resolution, a description, a date and a place."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif[0x0112] = orientation
    exif[0x0100], exif[0x0101] = 30, 20
    exif[0x8769] = {0x9003: "2026:11:22 10:00:00", 0xA002: 30, 0xA003: 20}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    return exif


def pillow(path: Path) -> np.ndarray:
    """What Pillow alone reads."""
    with Image.open(path) as image:
        return np.asarray(image)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".webp", ".bmp"])
@pytest.mark.parametrize("channels", [0, 2, 3, 4])
def test_eight_bits_come_back_exactly(tmp_path, noise, suffix, channels):
    """All of these formats are written without loss; gray stays gray where the format has gray."""
    pixels = noise(9, 13, channels) if channels else noise(9, 13)
    path = tmp_path / f"out{suffix}"
    if suffix == ".bmp" and channels in (2, 4):
        with pytest.raises(MediaError, match="transparency"):
            write_picture(path, Picture(pixels=pixels))
        return
    write_picture(path, Picture(pixels=pixels))
    back = read_picture(path).pixels
    if suffix == ".webp" and channels in (0, 2):
        gray = pixels[..., 0] if channels else pixels
        pixels = np.dstack([gray] * 3 + ([pixels[..., 1]] if channels else []))
    np.testing.assert_array_equal(back, pixels)


def test_jpeg_keeps_colour_at_full_resolution(tmp_path):
    """With chroma subsampling the red line would be half gone."""
    pixels = np.full((32, 32, 3), 128, np.uint8)
    pixels[:, 15] = (255, 0, 0)
    write_picture(tmp_path / "out.jpg", Picture(pixels=pixels))
    back = read_picture(tmp_path / "out.jpg").pixels
    assert np.abs(back.astype(int) - pixels).max() < 16
    gray = Picture(pixels=pixels[..., 0])
    write_picture(tmp_path / "gray.jpg", gray)
    assert read_picture(tmp_path / "gray.jpg").channels == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("deep", [False, True])
def test_profile_exif_and_resolution_travel(tmp_path, noise, suffix, deep):
    """Without its profile a wide-gamut photograph turns pale; without EXIF an archive loses its dates."""
    picture = Picture(
        pixels=noise(8, 8, 3, dtype=np.uint16 if deep else np.uint8),
        icc=SRGB,
        exif=camera_exif().tobytes(),
        dpi=(300.0, 300.0),
        png_colour=((b"sRGB", b"\0"),),
    )
    write_picture(tmp_path / f"out{suffix}", picture)
    with Image.open(tmp_path / f"out{suffix}") as image:
        image.load()
        assert image.info["icc_profile"] == SRGB
        assert image.getexif()[0x010E] == "a description"
        assert image.getexif().get_ifd(0x8825)[1] == "N"
    back = read_picture(tmp_path / f"out{suffix}")
    assert back.icc == SRGB
    # In a PNG a profile and an sRGB chunk exclude each other.
    assert back.png_colour == ()
    if suffix != ".webp":
        assert back.dpi == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, noise, suffix, orientation):
    """Applied and kept, a viewer would turn the picture again; neither, and it lies on its side."""
    image = Image.fromarray(np.kron(noise(2, 3, 3), np.ones((8, 8, 1), np.uint8)))
    exif = camera_exif(orientation)
    if suffix == ".tif":
        # There these are the file's own, and Pillow would write them as they stand.
        del exif[0x0100], exif[0x0101]
    image.save(tmp_path / f"in{suffix}", exif=exif.tobytes(), quality=100)
    with Image.open(tmp_path / f"in{suffix}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    picture = read_picture(tmp_path / f"in{suffix}")
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.exif is not None
    kept = Image.Exif()
    kept.load(picture.exif)
    assert 0x0112 not in kept
    assert 0x0100 not in kept
    assert 0x0101 not in kept
    assert kept[0x010E] == "a description"
    assert set(kept.get_ifd(0x8769)) == {0x9003}
    write_picture(tmp_path / f"out{suffix}", picture)
    np.testing.assert_array_equal(read_picture(tmp_path / f"out{suffix}").pixels.shape, expected.shape)


def test_resolution_turns_with_the_picture(tmp_path, noise):
    """Fax pictures have twice the resolution one way, and would come out squashed."""
    image = Image.fromarray(noise(4, 8, 3))
    image.save(tmp_path / "in.jpg", exif=camera_exif(6).tobytes(), dpi=(100, 200))
    assert read_picture(tmp_path / "in.jpg").dpi == (200, 100)


def test_broken_exif_costs_the_exif_only(tmp_path, noise):
    """A picture is not refused for a camera's mistake, and the loss is told."""
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "in.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    picture = read_picture(tmp_path / "in.jpg")
    assert picture.exif is None or b"garbage" not in picture.exif
    assert picture.pixels.shape == (8, 8, 3)


def test_a_png_keeps_what_its_samples_mean(tmp_path, noise):
    """A picture with gamma 1.0 looks twice as bright without the chunk that says so."""
    info = PngInfo()
    info.add(b"gAMA", (100000).to_bytes(4, "big"))
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "in.png", pnginfo=info)
    picture = read_picture(tmp_path / "in.png")
    write_picture(tmp_path / "out.png", picture)
    deep = picture.with_pixels(picture.pixels.astype(np.uint16) * 257)
    write_picture(tmp_path / "deep.png", deep)
    for name in ("out.png", "deep.png"):
        assert png_facts(tmp_path / name).colour == ((b"gAMA", (100000).to_bytes(4, "big")),)


@pytest.mark.parametrize(
    ("mode", "shape", "options"),
    [
        ("1", (6, 5), {}),
        ("L", (6, 5), {}),
        ("LA", (6, 5, 2), {}),
        ("P", (6, 5, 3), {}),
        ("P", (6, 5, 4), {"transparency": 3}),
        ("RGB", (6, 5, 4), {"transparency": (1, 2, 3)}),
        ("L", (6, 5, 2), {"transparency": 7}),
    ],
)
def test_modes_become_gray_or_colour(tmp_path, mode, shape, options):
    """A palette's indices are no brightness, and one transparent colour is transparency as well."""
    image = Image.effect_noise((5, 6), 90).convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    image.save(tmp_path / "in.png", **options)
    picture = read_picture(tmp_path / "in.png")
    assert picture.pixels.shape == shape
    rgba = np.asarray(image.convert("RGBA"))
    pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
    colour = pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
    np.testing.assert_array_equal(np.broadcast_to(colour, (6, 5, 3)), rgba[..., :3])


def test_cmyk_is_refused_with_what_to_do(tmp_path):
    """Converted without the press's profile its colours are wrong."""
    Image.new("CMYK", (4, 4)).save(tmp_path / "in.jpg")
    with pytest.raises(MediaError, match=r"CMYK.*convert it to RGB"):
        read_picture(tmp_path / "in.jpg")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_several_frames_are_refused(tmp_path, noise, suffix):
    """The first frame alone would look like success."""
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / f"in{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(MediaError, match="3 pictures"):
        read_picture(tmp_path / f"in{suffix}")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"<html>404</html>", "not a picture"), (b"\x89PNG\r\n\x1a\n", "cut off")],
)
def test_what_is_no_picture_is_one_line(tmp_path, content, says):
    """With the file's name in it, as there may be many."""
    (tmp_path / "in.png").write_bytes(content)
    with pytest.raises(MediaError, match=rf"in\.png .*{says}") as caught:
        read_picture(tmp_path / "in.png")
    assert "\n" not in str(caught.value)
    with pytest.raises(MediaError, match="no file"):
        read_picture(tmp_path / "gone.png")
    with pytest.raises(MediaError, match="folder"):
        read_picture(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_a_truncated_picture_is_refused_at_any_length(tmp_path, noise, suffix):
    """Half a picture, gray from the middle down, is not a result."""
    buffer = io.BytesIO()
    options = {".tif": {"format": "TIFF", "compression": "tiff_lzw"}, ".jpg": {"format": "JPEG"}}
    Image.fromarray(noise(64, 64, 3)).save(buffer, **options.get(suffix, {"format": suffix[1:].upper()}))
    whole = buffer.getvalue()
    for length in range(1, len(whole) - 2, len(whole) // 23):
        (tmp_path / f"in{suffix}").write_bytes(whole[:length])
        with pytest.raises(MediaError):
            read_picture(tmp_path / f"in{suffix}")


def test_a_flipped_byte_in_a_png_is_seen(tmp_path, noise):
    """Pillow reads over a wrong checksum of the samples."""
    Image.fromarray(noise(16, 16, 3)).save(tmp_path / "in.png")
    whole = bytearray((tmp_path / "in.png").read_bytes())
    whole[-20] ^= 1
    (tmp_path / "in.png").write_bytes(whole)
    with pytest.raises(MediaError, match="checksum"):
        read_picture(tmp_path / "in.png")


def test_the_pixel_limit_is_a_line_and_an_option(tmp_path):
    """A file of some kilobytes can claim gigabytes; a surveyor's map really has them."""
    Image.new("L", (300, 200)).save(tmp_path / "in.png")
    with pytest.raises(MediaError, match=r"300x200 = 60000 pixels.*--max-pixels 60000"):
        read_picture(tmp_path / "in.png", max_pixels=59999)
    assert read_picture(tmp_path / "in.png", max_pixels=60000).pixels.shape == (200, 300)


def test_pillows_own_limit_is_raised_and_put_back(tmp_path, monkeypatch):
    """It is a global of a library that the caller may use as well."""
    header = (20000).to_bytes(4, "big") + (20000).to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    lines = zlib.compress(bytes(2501 * 20000))
    data = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(MediaError, match="--max-pixels"):
        read_picture(tmp_path / "bomb.png")
    # Raised for real, but to below this one: decoding 400 megapixels is no unit test.
    with pytest.raises(MediaError, match="20000x20000 = 400000000 pixels, over the limit of 399999999"):
        read_picture(tmp_path / "bomb.png", max_pixels=399_999_999)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("name", "picture", "size", "says"),
    [
        ("out.jpg", np.zeros((2, 2, 4), np.uint8), (2, 2), "transparency"),
        ("out.webp", np.zeros((2, 2, 3), np.uint8), (2, 16384), "16383"),
        ("out.jpg", np.zeros((2, 2, 3), np.uint8), (65501, 2), "65500"),
        ("out.tif", np.zeros((2, 2, 3), np.uint8), (40000, 40000), "4.5 GiB"),
        ("out.gif", np.zeros((2, 2, 3), np.uint8), (2, 2), r"\.gif.*\.png"),
        ("out", np.zeros((2, 2, 3), np.uint8), (2, 2), "no suffix"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_the_work(tmp_path, name, picture, size, says):
    """Ten minutes of computing end in an error of the encoder otherwise."""
    with pytest.raises(MediaError, match=says):
        check_fits(tmp_path / name, Picture(pixels=picture), *size)


def test_what_is_left_out_is_told(tmp_path, noise):
    """Silence would mean that all of it is there."""
    deep = Picture(pixels=noise(4, 4, 3, dtype=np.uint16), icc=SRGB, exif=b"Exif\0\0" + bytes(70000))
    assert "8 bits a channel" in check_fits(tmp_path / "out.webp", deep, 4, 4)[0]
    assert check_fits(tmp_path / "out.tif", deep, 4, 4) == ()
    assert "no ICC profile" in check_fits(tmp_path / "out.bmp", deep, 4, 4)[1]
    assert "too long" in check_fits(tmp_path / "out.jpg", deep, 4, 4)[1]
    assert check_fits(tmp_path / "out.png", deep, 4, 4) == ()
    write_picture(tmp_path / "out.jpg", deep)
    gray = Picture(pixels=noise(4, 4), icc=SRGB[:16] + b"GRAY" + SRGB[20:])
    assert "gray ICC profile" in check_fits(tmp_path / "out.webp", gray, 4, 4)[0]


def test_nothing_existing_is_lost(tmp_path, noise):
    """Neither the input, nor an older output, nor what stood there when the encoder failed."""
    old, path = noise(4, 4, 3), tmp_path / "out.png"
    Image.fromarray(old).save(path)
    picture = Picture(pixels=noise(8, 8, 3, seed=5))
    with pytest.raises(MediaError, match=r"exists already.*--force"):
        write_picture(path, picture)
    (tmp_path / "link.png").symlink_to(path)
    for same in (path, tmp_path / "link.png", tmp_path / "." / "out.png"):
        with pytest.raises(MediaError, match="is the input"):
            check_output(same, source=path, force=True)
    broken = Picture(pixels=noise(4, 4), exif=b"not exif at all")
    with pytest.raises(SyntaxError):
        write_picture(tmp_path / "out.tif", broken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.png", "out.png"]
    np.testing.assert_array_equal(pillow(path), old)
    write_picture(path, picture, force=True)
    np.testing.assert_array_equal(pillow(path), picture.pixels)


@pytest.mark.parametrize("folder", ["gone", "file.txt", "/proc"])
def test_an_unwritable_folder_is_refused(tmp_path, folder):
    """As root every permission bit says yes; only trying tells."""
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(MediaError, match="writable"):
        check_output(tmp_path / folder / "out.png")


def test_pngsuite_corrupt_files_are_each_one_line(assets):
    """They are corrupt in ways that decoders are known to read over."""
    files = sorted((assets / "images" / "pngsuite").glob("x*.png"))
    assert len(files) == 14
    for file in files:
        with pytest.raises(MediaError, match=file.name) as caught:
            read_picture(file)
        assert "\n" not in str(caught.value)


def test_pngsuite_sound_files_are_read_at_their_own_depth(assets):
    """Every variant of PNG; Pillow's high bytes are the reference for colour of 16 bits."""
    for file in sorted((assets / "images" / "pngsuite").glob("[!xP]*.png")):
        picture, facts = read_picture(file), png_facts(file)
        assert picture.pixels.dtype == (np.uint16 if facts.depth == 16 else np.uint8), file.name
        theirs = pillow(file)
        # Of a palette it reads the places.
        if theirs.ndim == picture.channels == 3:
            high = picture.pixels >> 8 if facts.depth == 16 else picture.pixels
            np.testing.assert_array_equal(high, theirs, err_msg=file.name)


def test_reading_in_many_threads_leaves_the_warnings_of_the_program_alone(tmp_path):
    """Filters that one thread saved and another put back silence every later warning of the process, for good."""
    picture = np.zeros((300, 300, 3), np.uint8)
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", Picture(pixels=picture + number))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(8) as pool:
            for turn in range(10):
                list(pool.map(lambda n: read_picture(tmp_path / f"{n % 4}.png"), range(32)))
                with pytest.raises(UserWarning, match="of the program"):
                    warnings.warn(f"a warning of the program, {turn}", UserWarning, stacklevel=1)
