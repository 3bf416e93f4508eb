import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { brotliCompressSync, constants } from "node:zlib";
import { defineConfig, type Plugin } from "vite";


/** Beside each text its brotli form: Python has gzip, but no brotli. */
function brotli(): Plugin {
  return {
    name: "brotli",
    writeBundle({ dir }) {
      for (const entry of readdirSync(dir!, { recursive: true, withFileTypes: true })) {
        if (!/\.(html|js|css|svg)$/.test(entry.name)) continue;
        const path = join(entry.parentPath, entry.name);
        const content = readFileSync(path);
        const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: content.length };
        writeFileSync(`${path}.br`, brotliCompressSync(content, { params }));
      }
    },
  };
}

/** A digest of everything that the bundle is made of, so that a test without Node can tell an old bundle. */
function sourceDigest(): Plugin {
  return {
    name: "source-digest",
    writeBundle({ dir }) {
      const files = ["index.html", "package.json", "tsconfig.json", "vite.config.ts"];
      for (const entry of readdirSync("src", { recursive: true, withFileTypes: true }))
        if (entry.isFile()) files.push(relative(".", join(entry.parentPath, entry.name)).split(sep).join("/"));
      const digest = createHash("sha256");
      for (const name of files.sort()) digest.update(`${name}\0`).update(readFileSync(name)).update("\0");
      writeFileSync(join(dir!, "source.sha256"), `${digest.digest("hex")}\n`);
    },
  };
}

// One script and one stylesheet: the page is small enough that more requests would only cost time.
export default defineConfig({
  base: "/",
  plugins: [brotli(), sourceDigest()],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    target: "es2022",
    outDir: process.env.PAGE_OUT ?? "../rhizome_gateway/page/bundle",
    emptyOutDir: true,
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: false,
    rollupOptions: {
      output: {
        entryFileNames: "assets/page-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
      },
    },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
});
