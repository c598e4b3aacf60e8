// All files of the model in one gzip stream: a line of JSON with names and sizes, then the files one after the other.

export async function unpack(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const all = new Uint8Array(await new Response(stream).arrayBuffer());
  const end = all.indexOf(10), index = JSON.parse(new TextDecoder().decode(all.subarray(0, end)));
  const files = new Map();
  let at = end + 1;
  for (const [name, size] of index) files.set(name, all.slice(at, (at += size)));
  return files;
}
