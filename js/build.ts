/**
 * Writes the client: `node build.ts` into dist/, for npm, and `node build.ts FOLDER` into
 * another, for Django's static files. Equal sources and tools give equal bytes.
 */

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const { version } = JSON.parse(readFileSync(join(here, "package.json"), "utf8")) as { version: string };
const target = resolve(process.argv[2] ?? join(here, "dist"));
const banner = `/*! eventstream ${version}, MIT licence; source: js/src */`;

async function bundle(name: string, format: "esm" | "iife"): Promise<void> {
  await build({
    absWorkingDir: here,
    entryPoints: ["src/eventstream.ts"],
    outfile: join(target, name),
    bundle: true,
    minify: true,
    format,
    target: "es2022",
    charset: "utf8",
    banner: { js: banner },
    // A classic script: its names become properties of the window.
    ...(format === "iife" && { globalName: "_eventstream", footer: { js: "Object.assign(globalThis,_eventstream);" } }),
    legalComments: "none",
    logLevel: "warning",
  });
}

mkdirSync(target, { recursive: true });
await bundle("eventstream.module.js", "esm");
await bundle("eventstream.js", "iife");
if (process.argv[2] === undefined) {
  const options = ["--noEmit", "false", "--declaration", "--emitDeclarationOnly", "--outDir", target];
  const tsc = join(here, "node_modules", ".bin", "tsc");
  execFileSync(tsc, ["-p", join(here, "tsconfig.build.json"), ...options], { stdio: "inherit" });
  copyFileSync(join(here, "..", "LICENSE"), join(here, "LICENSE"));
}
