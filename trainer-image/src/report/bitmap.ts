/** Small pictures inside a report, as Windows bitmaps: every browser shows them, and they need no compressor. Pure. */

/** Longest side of a picture in a report, in pixels. */
const LONGEST_SIDE = 112;
/** BITMAPFILEHEADER and BITMAPINFOHEADER. */
const HEADER = 14 + 40;

/**
 * @param pixels [height, width, 3] bytes; larger pictures are reduced by a whole factor, by means over squares
 * @returns an address of data
 */
export function bitmapUri(
  pixels: Uint8Array,
  { height, width, channelOrder }: { height: number; width: number; channelOrder: 'rgb' | 'bgr' },
): string {
  const factor = Math.ceil(Math.max(height, width) / LONGEST_SIDE);
  const [rows, columns] = [Math.floor(height / factor) || 1, Math.floor(width / factor) || 1];
  const mean = (row: number, column: number, channel: number) => {
    let sum = 0;
    let count = 0;
    for (let y = row * factor; y < Math.min((row + 1) * factor, height); ++y)
      for (let x = column * factor; x < Math.min((column + 1) * factor, width); ++x) {
        sum += pixels[(y * width + x) * 3 + channel]!;
        ++count;
      }
    return Math.round(sum / count);
  };
  // Rows end at a multiple of four bytes.
  const stride = Math.ceil((columns * 3) / 4) * 4;
  const file = Buffer.alloc(HEADER + rows * stride);
  file.write('BM', 'latin1');
  file.writeUInt32LE(file.length, 2);
  file.writeUInt32LE(HEADER, 10);
  file.writeUInt32LE(40, 14);
  file.writeInt32LE(columns, 18);
  file.writeInt32LE(-rows, 22); // Negative: the first row is at the top.
  file.writeUInt16LE(1, 26);
  file.writeUInt16LE(24, 28);
  for (let row = 0; row < rows; ++row)
    for (let column = 0; column < columns; ++column)
      // A bitmap has blue first.
      for (let channel = 0; channel < 3; ++channel)
        file[HEADER + row * stride + column * 3 + channel] = mean(
          row,
          column,
          channelOrder === 'bgr' ? channel : 2 - channel,
        );
  return `data:image/bmp;base64,${file.toString('base64')}`;
}
