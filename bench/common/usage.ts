/** The folder of --data. Ends the program with the usage where --help is given, or no folder. */
export function folderOrUsage({ help, data }: { help: boolean; data?: string }, usage: string): string {
  if (data !== undefined && !help) return data;
  (help ? process.stdout : process.stderr).write(usage);
  process.exit(help ? 0 : 2);
}
