// The node, live: asks the admin server every two seconds and writes what it says into the page. Nothing that
// comes from the server is taken for HTML: every text goes in as text.
"use strict";

const EVERY = 2000;
const before = new Map(); // connection id -> {bytes, time}, for rates
let paused = false;
let failures = 0;

const byId = (id) => document.getElementById(id);

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${unit ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const sign = seconds < 0 ? "-" : "";
  const s = Math.abs(seconds);
  if (s < 1) return `${sign}${Math.round(s * 1000)} ms`;
  if (s < 100) return `${sign}${s.toFixed(1)} s`;
  if (s < 7200) return `${sign}${Math.round(s / 60)} min`;
  if (s < 172800) return `${sign}${(s / 3600).toFixed(1)} h`;
  return `${sign}${Math.round(s / 86400)} days`;
}

async function ask(path) {
  const response = await fetch(path, { headers: { accept: "application/json" }, cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response.json();
}

// Columns: [title, function from an item to a text or an element, class]. Rows keep their elements while their
// key stays, so that a focused button keeps its focus.
function fill(table, columns, items, key) {
  if (!table.tHead) {
    const head = table.createTHead().insertRow();
    for (const [title, , style] of columns) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.className = style === "number" ? style : "";
      cell.textContent = title;
      head.append(cell);
    }
    table.createTBody();
  }
  const body = table.tBodies[0];
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const wanted = items.map((item) => {
    const name = String(key(item));
    const row = known.get(name) || document.createElement("tr");
    row.dataset.key = name;
    columns.forEach(([, make, style], index) => {
      const cell = row.cells[index] || row.insertCell();
      if (style) cell.className = style;
      const value = make(item);
      if (value instanceof Node) {
        if (!cell.firstChild) cell.append(value);
      } else if (cell.textContent !== String(value)) {
        cell.textContent = value;
      }
    });
    return row;
  });
  const same = wanted.length === body.rows.length && wanted.every((row, index) => row === body.rows[index]);
  if (!same) body.replaceChildren(...wanted);
  let empty = table.parentElement.querySelector(".empty");
  if (!items.length && !empty) {
    empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "None now.";
    table.after(empty);
  } else if (items.length && empty) {
    empty.remove();
  }
}

function explainButton(item) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "explain";
  button.setAttribute("aria-label", `explain connection ${item.id}`);
  button.addEventListener("click", () => explain(`explain?connection=${encodeURIComponent(item.id)}`));
  return button;
}

async function explain(path) {
  const response = await fetch(path, { cache: "no-store" });
  byId("answer-text").textContent = await response.text();
  byId("answer").showModal();
}


function figures(node) {
  const shown = [
    ["Version", node.version], ["Node", node.node || "(no name)"], ["Mode", node.mode],
    ["Ready", node.waitingFor ? `waits: ${node.waitingFor}` : "yes", node.waitingFor ? "bad" : "good"],
    ["Control plane (xDS)", node.xds, node.xdsTrouble ? "bad" : "good"],
    ["CA", node.ca, node.caTrouble ? "bad" : "good"],
    ["Pods", node.pods.length], ["Open connections", node.open],
    ["Refused or failed", node.failed, node.failed ? "warn" : ""],
    ["Tasks", node.tasks], ["Loop lag (mean)", span(node.loopLagSeconds)], ["Descriptors", `${node.descriptors}`],
  ];
  const list = byId("figures");
  shown.forEach(([title, value, style], index) => {
    let box = list.children[index];
    if (!box) {
      box = document.createElement("div");
      box.append(document.createElement("dt"), document.createElement("dd"));
      list.append(box);
    }
    box.children[0].textContent = title;
    box.children[1].textContent = value;
    box.children[1].className = style || "";
  });
}

function rates(items, now) {
  const seen = new Set();
  for (const item of items) {
    const total = (item.receivedBytes || 0) + (item.sentBytes || 0);
    const last = before.get(item.id);
    item.rate = last ? Math.max(0, (total - last.bytes) * 1000 / (now - last.time)) : 0;
    before.set(item.id, { bytes: total, time: now });
    seen.add(item.id);
  }
  for (const id of before.keys()) if (!seen.has(id)) before.delete(id);
}

const other = (one) => one.peer || one.peerIdentity || one.nextHop || "";

async function look() {
  const order = new FormData(byId("order"));
  const filter = new URLSearchParams({ state: "open", limit: "100", sort: order.get("sort") });
  if (order.get("pod").trim()) filter.set("pod", order.get("pod").trim());
  const [node, open, failed, pool, certificates] = await Promise.all([
    ask("node"), ask(`connections?${filter}`), ask("connections?failed=1&limit=30"), ask("debug/pool"),
    ask("debug/certificates"),
  ]);
  rates(open, performance.now());
  figures(node);
  const id = (one) => one.id;
  fill(byId("refusals-table"), [
    ["When", (one) => `${span(one.ageSeconds)} ago`, "number"], ["Code", (one) => one.code, "code"],
    ["Pod", (one) => one.pod], ["Way", (one) => one.direction], ["Destination", (one) => one.destination],
    ["What", (one) => one.error, "wide bad"], ["Why", (one) => one.why || "", "wide"], ["Explanation", explainButton],
  ], failed, id);
  fill(byId("connections-table"), [
    ["Pod", (one) => one.pod], ["Way", (one) => one.direction], ["Other end", other, "wide"],
    ["Destination", (one) => one.destination], ["Age", (one) => span(one.ageSeconds), "number"],
    ["To server", (one) => bytes(one.receivedBytes || 0), "number"],
    ["Back", (one) => bytes(one.sentBytes || 0), "number"], ["Rate", (one) => `${bytes(one.rate)}/s`, "number"],
    ["Waits for", (one) => one.waitsFor], ["Explanation", explainButton],
  ], open, id);
  const waiting = open.filter((one) => one.waitsFor && one.waitsFor !== "nobody");
  waiting.sort((a, b) => (b.idleSeconds ?? b.ageSeconds) - (a.idleSeconds ?? a.ageSeconds));
  fill(byId("waits-table"), [
    ["For", (one) => span(one.idleSeconds ?? one.ageSeconds), "number"], ["Waits for", (one) => one.waitsFor, "wide"],
    ["Pod", (one) => one.pod], ["Way", (one) => one.direction], ["Other end", other, "wide"],
    ["Held", (one) => bytes(one.heldBytes || 0), "number"],
    ["Window", (one) => one.sendWindow === undefined ? "" : bytes(one.sendWindow), "number"], ["Explanation", explainButton],
  ], waiting.slice(0, 20), id);
  pool.sort((a, b) => b.streams - a.streams || b.ageSeconds - a.ageSeconds);
  fill(byId("tunnels-table"), [
    ["Pod", (one) => one.pod], ["Way", (one) => one.direction], ["Peer", (one) => one.peer],
    ["Who it is", (one) => one.peerIdentities.join(", "), "wide"], ["Streams", (one) => one.streams, "number"],
    ["Stalled", (one) => one.stalledStreams, "number"], ["Held", (one) => bytes(one.heldBytes), "number"],
    ["Round trip", (one) => span(one.roundTripSeconds), "number"],
    ["Heard", (one) => `${span(one.heardSecondsAgo)} ago`, "number"], ["Age", (one) => span(one.ageSeconds), "number"],
  ], pool.slice(0, 100), (one) => `${one.direction} ${one.peer} ${one.client} ${one.workload} ${one.pod}`);
  fill(byId("pods-table"), [
    ["Pod", (one) => one.name], ["Service account", (one) => one.serviceAccount], ["State", (one) => one.state],
    ["In", (one) => one.inbound, "number"], ["Out", (one) => one.outbound, "number"],
  ], node.pods, (one) => one.uid);
  certificates.sort((a, b) => (a.expiresInSeconds ?? -Infinity) - (b.expiresInSeconds ?? -Infinity));
  fill(byId("certificates-table"), [
    ["Identity", (one) => one.identity, "wide"],
    ["Expires in", (one) => one.expiresInSeconds === undefined ? "none yet" : span(one.expiresInSeconds), "number"],
    ["Next fetch", (one) => span(one.nextAttemptSeconds), "number"], ["Signed by", (one) => one.issuer || ""],
    ["Last error", (one) => one.lastError ? `${one.lastError} (${one.lastErrorCode})` : "", "wide bad"],
  ], certificates, (one) => one.identity);
}

async function tree() {
  const shown = byId("tree");
  if (!shown.hidden) shown.textContent = await (await fetch("debug/tasks", { cache: "no-store" })).text();
}

function say(text, style) {
  const live = byId("live");
  if (live.textContent !== text) live.textContent = text;
  live.className = style;
}

async function loop() {
  if (!paused && !document.hidden) {
    try {
      await look();
      await tree();
      failures = 0;
      say("Live", "good");
      document.body.dataset.looked = String(Number(document.body.dataset.looked || 0) + 1);
    } catch (error) {
      failures += 1;
      say(`Not live: ${error.message.slice(0, 200)}`, "bad");
    }
  }
  setTimeout(loop, EVERY * Math.min(1 + failures, 5));
}

byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", String(paused));
  event.target.textContent = paused ? "Go on" : "Pause";
  say(paused ? "Paused" : "Live", paused ? "warn" : "good");
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  explain(`explain?${new URLSearchParams(new FormData(event.target))}`);
});
byId("order").addEventListener("submit", (event) => event.preventDefault());
byId("tree-button").addEventListener("click", async (event) => {
  const shown = byId("tree");
  shown.hidden = !shown.hidden;
  event.target.setAttribute("aria-expanded", String(!shown.hidden));
  event.target.textContent = shown.hidden ? "Show the tree" : "Hide the tree";
  await tree();
});
loop();
