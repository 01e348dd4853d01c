/** What a job leaves, as `kubectl facetrain fetch` names it. */
export const PARTS = ['model', 'int7', 'checkpoint'] as const;
export type Part = (typeof PARTS)[number];

export const isPart = (text: string): text is Part => (PARTS as readonly string[]).includes(text);
