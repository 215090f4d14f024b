// Prints what an export gives for images: node predict.mjs MODEL IMAGES.json IMAGES.bin
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";

const [model, list, bytes] = process.argv.slice(2);
const session = await ort.InferenceSession.create(readFileSync(model));
const pixels = readFileSync(bytes);
const found = [];
let start = 0;
for (const [height, width] of JSON.parse(readFileSync(list, "utf8"))) {
  const data = new Uint8Array(pixels.subarray(start, (start += height * width * 3)));
  const out = await session.run({ image: new ort.Tensor("uint8", data, [height, width, 3]) });
  found.push(Array.from(out.probabilities.data));
}
console.log(JSON.stringify(found));
