// Debian packages: installs, as root, those of a list that are missing.
import { run, SetupError, step } from './steps.mjs';

/**
 * @param {string[]} names
 * @throws SetupError with the command to run, where packages are missing and this user is not root
 */
export async function debianPackages(names) {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own placeholders
  const listed = await run(['dpkg-query', '-W', '-f', '${Package} ${db:Status-Abbrev}\n']).catch(() => {
    throw new SetupError(`This machine has no dpkg. Install what these Debian packages hold: ${names.join(' ')}`);
  });
  const installed = new Set(listed.split('\n').flatMap((line) => (line.includes(' ii') ? [line.split(' ')[0]] : [])));
  const missing = names.filter((name) => !installed.has(name));
  if (missing.length === 0) return;
  if (process.getuid() !== 0) {
    const command = `sudo apt-get install --no-install-recommends ${missing.join(' ')}`;
    throw new SetupError(`Debian packages are missing, and only root may install them. Run:\n\n    ${command}\n`);
  }
  await step(`Debian packages (${missing.join(' ')})`, async (show) => {
    const env = { DEBIAN_FRONTEND: 'noninteractive' };
    // Another apt may be at work, such as that of unattended upgrades.
    const wait = ['-o', 'DPkg::Lock::Timeout=300'];
    await run(['apt-get', ...wait, 'update'], { show, env });
    await run(['apt-get', ...wait, 'install', '-y', '--no-install-recommends', ...missing], { show, env });
  });
}
