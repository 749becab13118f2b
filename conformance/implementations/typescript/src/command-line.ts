/** What the command lines of `client` and `server` have in common. */

/** Something that the user has to mend. */
export class UsageError extends Error {}

/** What node:net connects to, or listens at. */
export type Address = { readonly path: string } | { readonly host: string; readonly port: number };

/**
 * Takes `host:port`, `[IPv6]:port`, either of them behind `tcp://`, or the path of a Unix socket: whatever looks like none
 * of the others.
 */
export function parseAddress(address: string | undefined): Address {
  if (address === undefined || address === "") throw new UsageError("ADDRESS is missing");
  const [, tcp, bracketed, plain, port] = /^(tcp:\/\/)?(?:\[([^/\]]+)\]|([^/:]+)):([0-9]+)$/.exec(address) ?? [];
  const host = bracketed ?? plain;
  if (tcp === undefined && address.startsWith("tcp://")) throw new UsageError(`${address} is not tcp://host:port`);
  if (host === undefined) return { path: address };
  if (Number(port) > 65_535) throw new UsageError(`the port is ${port}; it must be at most 65535`);
  return { host, port: Number(port) };
}

/** Where that is, in the form that {@link parseAddress} takes. */
export function showAddress(address: Address): string {
  if ("path" in address) return address.path;
  return address.host.includes(":") ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/** A flag whose value is a whole number within a range. */
export function wholeNumber(flag: string, value: string, least: number, most: number): number {
  if (!/^[0-9]+$/.test(value) || Number(value) < least || Number(value) > most) {
    throw new UsageError(`${flag} is ${JSON.stringify(value)}; it must be a whole number from ${least} to ${most}`);
  }
  return Number(value);
}

/** Whether this is the fault of who wrote the command line; parseArgs of node:util throws a TypeError then. */
export function isUsageFault(fault: unknown): fault is Error {
  return fault instanceof UsageError || fault instanceof TypeError;
}
