/** Numbers of things in messages and reports. */

/**
 * 1 picture, 2 pictures, 0 classes.
 * @param noun in the singular, with words in front if there are any
 * @param shown how the number is written
 */
export function counted(count: number, noun: string, shown: (count: number) => string = String): string {
  return `${shown(count)} ${count === 1 ? noun : plural(noun)}`;
}

function plural(noun: string): string {
  if (/[^aeiou]y$/.test(noun)) return `${noun.slice(0, -1)}ies`;
  if (/axis$/.test(noun)) return `${noun.slice(0, -2)}es`;
  return /(s|x|ch|sh)$/.test(noun) ? `${noun}es` : `${noun}s`;
}
