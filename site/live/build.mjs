// node build.mjs MODEL_FOLDER OUT: the page in OUT, and OUT/tinyomni.html, the same as one file that works from disk.
// MODEL_FOLDER is what `tinyomni export-onnx` wrote.

import { build } from "esbuild";
import { createRequire } from "node:module";
import fs from "node:fs";
import path from "node:path";
import { gzipSync } from "node:zlib";

const [models, out] = process.argv.slice(2);
if (!models || !out) throw new Error("usage: node build.mjs MODEL_FOLDER OUT");
const here = import.meta.dirname, require = createRequire(import.meta.url);

async function bundle(name) {
  const made = await build({
    entryPoints: [path.join(here, "src", `${name}.js`)], bundle: true, minify: true, format: "iife", target: "es2022",
    write: false, define: { "import.meta.url": "self.location.href" }, logLevel: "error", legalComments: "none",
  });
  return made.outputFiles[0].text;
}

const wasm = path.join(path.dirname(require.resolve("onnxruntime-web")), "ort-wasm-simd-threaded.wasm");
const files = [["ort.wasm", fs.readFileSync(wasm)]];
for (const name of fs.readdirSync(models).sort()) if (/\.(onnx|json)$/.test(name)) files.push([name, fs.readFileSync(path.join(models, name))]);
const index = JSON.stringify(files.map(([name, data]) => [name, data.length])) + "\n";
const pack = gzipSync(Buffer.concat([Buffer.from(index), ...files.map(([, data]) => data)]), { level: 9 });

const [app, worker] = [await bundle("app"), await bundle("worker")];
const html = fs.readFileSync(path.join(here, "index.html"), "utf8"), style = fs.readFileSync(path.join(here, "style.css"), "utf8");
fs.mkdirSync(out, { recursive: true });
const write = (name, data) => fs.writeFileSync(path.join(out, name), data);
write("index.html", html.replace('type="module" src="app.js"', 'src="app.js"'));
write("style.css", style), write("app.js", app), write("worker.js", worker), write("model.pack", pack);

const safe = (code) => code.replaceAll("</script", "<\\/script");
const single = html
  .replace('<link rel="stylesheet" href="style.css">', () => `<style>${style}</style>`)
  .replace('<script type="module" src="app.js"></script>', () =>
    `<script type="text/plain" id="worker">${safe(worker)}</script>\n<script type="text/plain" id="pack">${pack.toString("base64")}</script>\n<script>${safe(app)}</script>`);
write("tinyomni.html", single);

const sizes = { "model.pack": pack.length, "app.js": gzipSync(app).length, "worker.js": gzipSync(worker).length };
const total = Object.values(sizes).reduce((a, b) => a + b) + gzipSync(html + style).length;
console.log(`${out}: ${(total / 1e6).toFixed(2)} MB to download (compressed); tinyomni.html ${(single.length / 1e6).toFixed(2)} MB`);
