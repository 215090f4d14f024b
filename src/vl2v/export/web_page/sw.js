// Caches the whole page for when there is no network. VERSION changes with any of its files.
"use strict";
const VERSION = "{version}";
const FILES = {files}.map(name => new Request(name, { cache: "no-cache" }));  // none of an older version

self.addEventListener("install", event => {
  event.waitUntil(caches.open(VERSION).then(cache => cache.addAll(FILES)).then(() => self.skipWaiting()));
});
self.addEventListener("activate", event => {
  const old = caches.keys().then(names => Promise.all(names.filter(name => name !== VERSION).map(name => caches.delete(name))));
  event.waitUntil(old.then(() => self.clients.claim()));
});
self.addEventListener("fetch", event => {
  if (event.request.method !== "GET") return;
  event.respondWith(caches.open(VERSION).then(async cache => await cache.match(event.request, { ignoreSearch: true }) ?? fetch(event.request)));
});
