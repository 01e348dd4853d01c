/** The files of the chart that come from the schema of its values: schema, defaults, and the table in the README. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Document, isMap, isScalar, type YAMLMap } from 'yaml';
import { z } from 'zod';
import { SubchartValues, Values } from './chart-values.ts';
import { GENERATED, WIDTH } from './generated-yaml.ts';
import { chart } from './helm.ts';

const CHART = 'charts/facetrain';
/** Where the README has the table; the text around it is written by hand. */
const TABLE = /(<!-- values -->\n)[\s\S]*?(<!-- \/values -->)/;

/** A node of a JSON Schema, as far as the values use it. */
interface SchemaNode {
  description?: string;
  properties?: Record<string, SchemaNode>;
}

const jsonSchema = (schema: z.ZodType) => z.toJSONSchema(schema, { target: 'draft-7', io: 'input' });

export function valuesFiles(): Record<string, string> {
  const readme = readFileSync(join(chart, 'README.md'), 'utf8');
  if (!TABLE.test(readme))
    throw new Error(
      `${CHART}/README.md: no place for the table of values, between <!-- values --> and <!-- /values -->`,
    );
  const schema = { $comment: GENERATED, ...jsonSchema(SubchartValues) };
  return {
    [`${CHART}/values.schema.json`]: `${JSON.stringify(schema, null, 2)}\n`,
    [`${CHART}/values.yaml`]: valuesYaml(),
    [`${CHART}/README.md`]: readme.replace(
      TABLE,
      (_, begin: string, end: string) => `${begin}\n${valuesTable()}\n\n${end}`,
    ),
  };
}

/** The defaults, each under its description. */
function valuesYaml(): string {
  const document = new Document(Values.parse({}));
  document.commentBefore = ` ${GENERATED} What each value may be is in values.schema.json.`;
  addComments(document.contents as YAMLMap, jsonSchema(Values) as SchemaNode, 0);
  return document.toString({ lineWidth: 0 });
}

function addComments(map: YAMLMap, schema: SchemaNode, depth: number): void {
  for (const [index, { key, value }] of map.items.entries()) {
    if (!isScalar(key)) continue;
    const property = schema.properties![String(key.value)]!;
    key.commentBefore = wrap(property.description!, WIDTH - 2 - 2 * depth);
    if (depth === 0 && index > 0) key.spaceBefore = true;
    if (property.properties && isMap(value)) addComments(value, property, depth + 1);
  }
}

/** Wraps the text; each line begins with the space that follows "#". */
function wrap(text: string, width: number): string {
  const lines = [''];
  for (const word of text.split(' ')) {
    if (lines.at(-1)!.length + 1 + word.length > width) lines.push('');
    lines.push(`${lines.pop()} ${word}`);
  }
  return lines.join('\n');
}

/** A Markdown table: name, default and description of every value. */
function valuesTable(): string {
  const rows = (schema: SchemaNode, defaults: Record<string, unknown>, prefix: string): string[] =>
    Object.entries(schema.properties!).flatMap(([name, { properties, description }]) => {
      const value = defaults[name];
      const shown = properties ? '' : `\`${JSON.stringify(value)}\``;
      const row = `| \`${prefix}${name}\` | ${shown} | ${description} |`;
      if (!properties) return [row];
      return [row, ...rows({ properties }, value as Record<string, unknown>, `${prefix}${name}.`)];
    });
  return [
    '| value | default | what it is |',
    '| --- | --- | --- |',
    ...rows(jsonSchema(Values) as SchemaNode, Values.parse({}), ''),
  ].join('\n');
}
