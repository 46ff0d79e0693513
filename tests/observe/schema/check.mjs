// Holds the dashboards' JSON against the types of @grafana/schema.
//
// Usage: node check.mjs DASHBOARD.json... (in a folder where `npm ci` ran)
//
// Each file becomes the initializer of a constant with the dashboard's type, so that TypeScript also finds what the types
// don't know: a misspelt key, an option of another panel.

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import ts from "typescript";

const PRELUDE = `
import type { Dashboard, DataQuery, FieldConfig, GraphFieldConfig, Panel, RowPanel } from "@grafana/schema";
import type { Options as StatOptions } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type { Options as LineOptions } from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// In JSON a member of an enum is its value, and "not there" is null where a type asks for a number.
type Plain<T> =
  unknown extends T ? T
  : T extends string ? \`\${T}\`
  : T extends number ? (\`\${T}\` extends \`\${infer N extends number}\` ? (number extends N ? number | null : N) : never)
  : T extends boolean | null | undefined ? T
  : T extends (infer Item)[] ? Plain<Item>[]
  : { [Key in keyof T]: Plain<T[Key]> };

// What @grafana/schema leaves to plugins: Prometheus' queries, and the links of fields.
interface PrometheusQuery extends DataQuery {
  expr: string; legendFormat: string; range: boolean; instant: boolean; editorMode: "code" | "builder";
}
interface DataLink { title: string; url: string; targetBlank?: boolean }

type Field<Custom> = Omit<Plain<FieldConfig>, "custom" | "links"> & { links: DataLink[] } & Custom;
type Of<Kind extends string, Options, Custom> =
  Omit<Plain<Panel>, "type" | "options" | "fieldConfig" | "targets"> & {
    type: Kind; title: string; description: string; options: Plain<Options>; targets: Plain<PrometheusQuery>[];
    fieldConfig: { defaults: Field<Custom>; overrides: never[] };
  };
type AnyPanel =
  | Plain<RowPanel>
  | Of<"stat", StatOptions, {}>
  | Of<"timeseries", LineOptions, { custom: Plain<GraphFieldConfig> }>;
type Checked = Omit<Plain<Dashboard>, "panels"> & { panels: AnyPanel[] };
`;

const files = process.argv.slice(2);
const sources = new Map(
  files.map((file) => [
    `${process.cwd()}/${basename(file, ".json")}.check.ts`,
    `${PRELUDE}export const dashboard: Checked = ${readFileSync(file, "utf8")};`,
  ]),
);
const options = {
  strict: true, noEmit: true, skipLibCheck: true, target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler, types: [],
};
const host = ts.createCompilerHost(options);
const { fileExists, getSourceFile } = host;
host.fileExists = (path) => sources.has(path) || fileExists.call(host, path);
host.getSourceFile = (path, ...rest) =>
  sources.has(path) ? ts.createSourceFile(path, sources.get(path), ts.ScriptTarget.ES2022) : getSourceFile.call(host, path, ...rest);

const found = ts.getPreEmitDiagnostics(ts.createProgram([...sources.keys()], options, host));
for (const diagnostic of found.slice(0, 20)) {
  const text = ts.flattenDiagnosticMessageText(diagnostic.messageText, "\n");
  const place = diagnostic.file?.getLineAndCharacterOfPosition(diagnostic.start);
  const line = place && place.line + 1 - PRELUDE.split("\n").length + 1;
  console.error(`${diagnostic.file && basename(diagnostic.file.fileName, ".check.ts")}.json:${line}: ${text}`);
}
console.log(`${files.length} dashboards, ${found.length} errors against @grafana/schema`);
process.exit(found.length === 0 && files.length > 0 ? 0 : 1);
