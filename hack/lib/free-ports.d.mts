/** Ports of the loopback that are free and differ. */
export function freePorts(count: number): Promise<[number, ...number[]]>;
