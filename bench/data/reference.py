"""The reference of the benchmark of the loader: what Python programs decode training pictures with.

Usage: reference.py FOLDER SECONDS. Reads the first 1,000 pictures of FOLDER/train.rec (RecordIO of insightface), and
prints a line for each library that is installed: its name, a tab, and decoded pictures per second of processor time.
One thread, pictures in memory, no mirroring or shifts.
"""

import io
import struct
import sys
import time


def pictures(path, most=1000):
    with open(path, "rb") as file:
        data = file.read()
    at = 0
    while at + 8 <= len(data) and most > 0:
        _, word = struct.unpack_from("<II", data, at)
        length = word & ((1 << 29) - 1)
        flag = struct.unpack_from("<I", data, at + 8)[0]
        picture = data[at + 8 + 24 + 4 * flag : at + 8 + length]
        at += 8 + (length + 3) // 4 * 4
        if picture and word >> 29 == 0:
            most -= 1
            yield picture


def speed(decode, encoded, seconds):
    for picture in encoded[:100]:
        decode(picture)
    start, done = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        for picture in encoded[:100]:
            decode(picture)
        done += 100
    return done / spent


def main():
    folder, seconds = sys.argv[1], float(sys.argv[2])
    encoded = list(pictures(folder + "/train.rec"))
    try:
        import cv2
        import numpy

        cv2.setNumThreads(1)
        arrays = [numpy.frombuffer(picture, numpy.uint8) for picture in encoded]
        print(f"OpenCV {cv2.__version__}\t{speed(lambda p: cv2.imdecode(p, cv2.IMREAD_COLOR), arrays, seconds):.0f}")
    except ImportError:
        pass
    try:
        import PIL
        from PIL import Image

        def decode(picture):
            return Image.open(io.BytesIO(picture)).convert("RGB").tobytes()

        print(f"Pillow {PIL.__version__}\t{speed(decode, encoded, seconds):.0f}")
    except ImportError:
        pass


main()
