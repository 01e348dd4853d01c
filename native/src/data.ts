/** Pictures: the dataset's records and JPEG, decoded natively on threads of their own. */

/** Decoded pictures, [count, height, width, 3] bytes. */
export interface Pictures {
  count: number;
  height: number;
  width: number;
  channelOrder: 'rgb' | 'bgr';
  data: Uint8Array;
}

export interface DatasetInfo {
  images: number;
  /** As `property` says. */
  identities: number;
  /** Labels that occur. */
  identitiesSeen: number;
  labelMin: number;
  labelMax: number;
  height: number;
  width: number;
  bytes: number;
}
