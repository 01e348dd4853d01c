/**
 * Rates and memory of the devices that `facetrain plan` knows. H100, H200 and the CPU were measured with our own
 * programs (docs/benchmarks.md); the others are their data sheets times what an H100 reaches of its own: 74 % of the
 * products (tensor cores, without sparsity), 88 % of the bytes.
 */
import type { Precision } from '@facetrain/api';

/** Rates of one device. FLOP are multiplications and additions, each counted. */
export interface DeviceKind {
  name: string;
  type: 'cpu' | 'cuda';
  /** Of the device; on a CPU that of the machine, which is not known here: null. */
  memoryBytes: number | null;
  /** Bytes a second that a copy reads and writes together; of a CPU for each thread. */
  bytesPerSecond: number;
  /** FLOP a second of large matrix products by precision; of a CPU for each thread. Absent: it has no such one. */
  products: Partial<Record<Precision, number>>;
  /** Share of `products` that convolutions reach. */
  convolutions: Partial<Record<Precision, number>>;
  /** Share of `products` that the matrix products of Partial FC reach. */
  headProducts: Partial<Record<Precision, number>>;
  /** Bytes a second in one direction between two ranks of one machine, as collectives reach it. */
  linkBytesPerSecond: number;
  /**
   * Bytes a second between the device and the memory of its machine, in one direction, which kernels reach that read
   * that memory: three quarters of the bus, by its data sheet. Not measured.
   */
  hostBytesPerSecond: number;
  measured: boolean;
}

const tera = 1e12;
const giga = 1e9;
const GIB = 2 ** 30;

/** What an H100 reaches of its data sheet: 733 of 989 TFLOP/s in BF16, 2.96 of 3.35 TB/s. */
const REACHED = { products: 0.74, bytes: 0.88 };
/** Gigabytes a second of 16 lanes of PCI Express in one direction. */
const [PCIE_4, PCIE_5] = [31.5, 63];
/** Fitted to the tables of docs/benchmarks.md: cuDNN's and cuBLAS's share of the rate of one large product. */
const ON_CUDA = {
  convolutions: { fp32: 0.75, tf32: 0.6, bf16: 0.75, fp16: 0.75 },
  headProducts: { fp32: 0.95, tf32: 0.75, bf16: 0.75, fp16: 0.75 },
} as const;

function fromDataSheet(
  name: string,
  memoryGib: number,
  terabytes: number,
  teraflops: { fp32: number; tf32: number; bf16: number },
  linkGigabytes: number,
  busGigabytes = PCIE_4,
): DeviceKind {
  return {
    name,
    type: 'cuda',
    memoryBytes: memoryGib * GIB,
    bytesPerSecond: terabytes * REACHED.bytes * tera,
    products: {
      // Without tensor cores nearly all of it is reached.
      fp32: teraflops.fp32 * 0.85 * tera,
      tf32: teraflops.tf32 * REACHED.products * tera,
      bf16: teraflops.bf16 * REACHED.products * tera,
      fp16: teraflops.bf16 * REACHED.products * tera,
    },
    ...ON_CUDA,
    linkBytesPerSecond: linkGigabytes * 0.75 * giga,
    hostBytesPerSecond: busGigabytes * 0.75 * giga,
    measured: false,
  };
}

const hopper = {
  type: 'cuda',
  products: { fp32: 51 * tera, tf32: 388 * tera, bf16: 733 * tera, fp16: 705 * tera },
  ...ON_CUDA,
  linkBytesPerSecond: 0.75 * 450 * giga,
  hostBytesPerSecond: 0.75 * PCIE_5 * giga,
  measured: true,
} as const;

/** By the name that `--gpu` takes. */
export const DEVICE_KINDS = {
  h100: { ...hopper, name: 'NVIDIA H100 80GB', memoryBytes: 79.1 * GIB, bytesPerSecond: 2.96 * tera },
  h200: { ...hopper, name: 'NVIDIA H200 141GB', memoryBytes: 139 * GIB, bytesPerSecond: 4.3 * tera },
  a100: fromDataSheet('NVIDIA A100 80GB', 79.1, 2.04, { fp32: 19.5, tf32: 156, bf16: 312 }, 300),
  'a100-40gb': fromDataSheet('NVIDIA A100 40GB', 39.4, 1.56, { fp32: 19.5, tf32: 156, bf16: 312 }, 300),
  l40s: fromDataSheet('NVIDIA L40S 48GB', 44.5, 0.864, { fp32: 91.6, tf32: 183, bf16: 362 }, 28),
  a10: fromDataSheet('NVIDIA A10 24GB', 22.1, 0.6, { fp32: 31.2, tf32: 62.5, bf16: 125 }, 28),
  l4: fromDataSheet('NVIDIA L4 24GB', 22.1, 0.3, { fp32: 30.3, tf32: 60, bf16: 121 }, 28),
  cpu: {
    name: 'CPU (a thread of a 2023 EPYC)',
    type: 'cpu',
    memoryBytes: null,
    bytesPerSecond: 8 * giga,
    // What the products of Partial FC reach on a core of Zen 4.
    products: { fp32: 112 * giga, bf16: 228 * giga },
    // oneDNN's convolutions, with the operators between them.
    convolutions: { fp32: 1, bf16: 0.95 },
    headProducts: { fp32: 1, bf16: 1 },
    linkBytesPerSecond: 2 * giga,
    hostBytesPerSecond: 8 * giga,
    measured: true,
  },
} as const satisfies Record<string, DeviceKind>;

export type DeviceKindName = keyof typeof DEVICE_KINDS;
export const deviceKindNames = Object.keys(DEVICE_KINDS) as DeviceKindName[];
