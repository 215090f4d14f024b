// Prints what transformers.js gives for images on a hub of ours: node transformers.mjs HUB REPO CACHE DTYPE IMAGES...
import { env, pipeline } from "@huggingface/transformers";

const [hub, repo, cache, dtype, ...images] = process.argv.slice(2);
Object.assign(env, { remoteHost: hub, cacheDir: cache, allowLocalModels: false });
const student = await pipeline("image-classification", repo, { dtype });
const found = [];
for (const image of images) found.push(await student(image, { top_k: 100 }));
console.log(JSON.stringify(found));
