"""Slices of a volume as a film: GIF by Pillow, MP4 by the extra `animation`."""

from __future__ import annotations

import importlib.util
import io
import itertools
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.reporting import overlay

KINDS = ("none", "gif", "mp4")
_MOST_COLORS = 256  # Of a GIF.


def check(kind: str) -> None:
  """Raises InputError where films of a kind cannot be written here, one line."""
  if kind == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
    raise InputError(
        "--animation=mp4 needs the extra `animation`: pip install 'flexunet[animation]'."
        " --animation=gif goes without."
    )


def encode(
    frames: Iterable[np.ndarray], kind: str, frames_per_second: int, palette: np.ndarray
) -> bytes:
  """Returns a film as the bytes of its file; one frame is in memory at a time, and the film.

  Args:
    frames: uint8 [H, W, 3] each, all of one size; at least one.
    kind: "gif" or "mp4".
    frames_per_second: 1 to 50.
    palette: Colours of the classes, uint8 [classes, 3], background first; a GIF keeps them.

  Raises:
    InputError: The extra for it is not installed, or the encoder failed.
  """
  if kind == "mp4":
    return _mp4(iter(frames), frames_per_second)
  return _gif(iter(frames), frames_per_second, palette)


def _gif(frames: Iterator[np.ndarray], frames_per_second: int, palette: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  # One list of colours for all: lists made of each frame flicker, and lose the legend's.
  listed = Image.new("P", (1, 1))
  listed.putpalette(_gif_colors(palette).tobytes())
  images = (
      Image.fromarray(frame).quantize(palette=listed, dither=Image.Dither.NONE) for frame in frames
  )
  first = next(images)
  # A GIF counts hundredths of a second.
  duration_ms = 10 * round(100 / frames_per_second)
  first.save(
      buffer, "GIF", save_all=True, append_images=images, duration=duration_ms, loop=0,
      optimize=False, disposal=2,
  )  # fmt: skip
  return buffer.getvalue()


def _gif_colors(palette: np.ndarray) -> np.ndarray:
  """Returns the colours of a GIF, uint8 [n, 3]: the classes', greys, and greys tinted by each."""
  colors = palette[1:].astype(np.float64)
  # Half of the room for greys, the other half for tints.
  greys = np.linspace(0, 255, (_MOST_COLORS - len(colors)) // (2 if len(colors) else 1))
  room = _MOST_COLORS - len(colors) - len(greys)
  levels = np.linspace(0, 255, room // len(colors) if len(colors) else 0)
  tints = [grey + overlay.TINT * (color - grey) for color in colors for grey in levels]
  parts = [colors, np.repeat(greys[:, None], 3, axis=1), np.array(tints).reshape(-1, 3)]
  return np.round(np.concatenate(parts)).astype(np.uint8)


def _mp4(frames: Iterator[np.ndarray], frames_per_second: int) -> bytes:
  check("mp4")
  # Of an extra, and needed for this kind alone.
  import imageio_ffmpeg

  first = next(frames)
  # Players want chroma of half the size: an even number of pixels each way.
  down, right = first.shape[0] % 2, first.shape[1] % 2
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "film.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (first.shape[1] + right, first.shape[0] + down),
        fps=frames_per_second,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=1,
        quality=None,
        output_params=["-crf", "18", "-bf", "0", "-movflags", "+faststart", "-map_metadata", "-1"],
        ffmpeg_log_level="error",
    )
    try:
      writer.send(None)
      for frame in itertools.chain([first], frames):
        writer.send(np.ascontiguousarray(np.pad(frame, ((0, down), (0, right), (0, 0)))))
      writer.close()
      return path.read_bytes()
    except OSError as error:  # It names files of its own and repeats its log, over many lines.
      raise InputError(
          "--animation=mp4: the encoder of the extra `animation` stopped. Try --animation=gif."
      ) from error
    finally:
      writer.close()
