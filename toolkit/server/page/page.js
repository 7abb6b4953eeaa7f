// The page of `ortkit serve`: no library, no other host. The API key stays in the field of this tab.

const byId = (id) => document.getElementById(id);

// Requests

function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, body, signal) {
  const options = { headers: headers(), signal, cache: "no-store", credentials: "omit" };
  const response = await fetch(path, body === undefined ? options : { ...options, method: "POST", body: JSON.stringify(body) });
  if (!response.ok) {
    throw new Error(await problemOf(response));
  }
  return response;
}

async function problemOf(response) {
  if (response.status === 401) {
    return "This server needs an API key: type it at the top of the page.";
  }
  try {
    const { error } = await response.json();
    return typeof error === "string" ? error : error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function say(id, text, isError = false) {
  const place = byId(id);
  place.textContent = text;
  place.classList.toggle("error", isError);
}

function sayError(id, error) {
  if (error.name !== "AbortError") {
    say(id, error instanceof TypeError ? "The server does not answer." : error.message, true);
  }
}

// Tabs

const tabs = [...document.querySelectorAll('[role="tab"]')];

function select(tab, withFocus = true) {
  for (const other of tabs) {
    const isSelected = other === tab;
    other.setAttribute("aria-selected", String(isSelected));
    other.tabIndex = isSelected ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !isSelected;
  }
  if (withFocus) {
    tab.focus();
  }
  watchStatus(tab.id === "tab-status");
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      select(tabs[(to + tabs.length) % tabs.length]);
    }
  });
}

// Models

const PANELS = { chat: "decoder", similar: "embedder", rerank: "reranker" };
let models = [];

async function loadModels() {
  const { data } = await (await ask("/v1/models")).json();
  models = data;
  for (const [panel, kind] of Object.entries(PANELS)) {
    const list = byId(`${panel}-model`);
    const chosen = list.value;
    const fitting = models.filter((model) => model.kind === undefined || model.kind === kind);
    list.replaceChildren(...fitting.map((model) => new Option(model.id, model.id)));
    if (fitting.some((model) => model.id === chosen)) {
      list.value = chosen;
    }
    byId(panel).querySelector(".missing").hidden = fitting.length > 0;
  }
  const rerankers = models.filter((model) => model.kind === "reranker");
  const chosen = byId("search-reranker").value;
  byId("search-reranker").replaceChildren(new Option("none", ""), ...rerankers.map((model) => new Option(model.id, model.id)));
  byId("search-reranker").value = rerankers.some((model) => model.id === chosen) ? chosen : "";
  await loadIndexes();
}

let indexes = [];

async function loadIndexes() {
  const { data } = await (await ask("/v1/vector_stores")).json();
  indexes = data;
  for (const id of ["search-index", "chat-index"]) {
    const list = byId(id);
    const chosen = list.value;
    list.replaceChildren(...indexes.map((index) => new Option(index.name, index.id)));
    if (indexes.some((index) => index.id === chosen)) {
      list.value = chosen;
    }
  }
  byId("search").querySelector(".missing").hidden = indexes.length > 0;
  byId("documents-row").hidden = indexes.length === 0;
}

// Chat

let conversation = [];
let answering = null;

function addMessage(role, text) {
  const place = document.createElement("div");
  place.className = `message ${role}`;
  const name = document.createElement("b");
  name.textContent = role === "user" ? "You" : "Model";
  const body = document.createElement("span");
  body.textContent = text;
  place.append(name, body);
  byId("messages").append(place);
  byId("messages").scrollTop = byId("messages").scrollHeight;
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") {
        return;
      }
      if (data) {
        yield JSON.parse(data);
      }
    }
  }
}

function chatRequest() {
  const system = byId("system").value.trim();
  const request = {
    model: byId("chat-model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (byId("temperature").value !== "") {
    request.temperature = Number(byId("temperature").value);
  }
  if (byId("max-tokens").value !== "") {
    request.max_completion_tokens = Number(byId("max-tokens").value);
  }
  if (byId("use-documents").checked && indexes.length) {
    request.tools = [{ type: "file_search", vector_store_ids: [byId("chat-index").value] }];
  }
  return request;
}

async function send() {
  const prompt = byId("prompt").value.trim();
  if (!prompt || answering !== null) {
    return;
  }
  byId("prompt").value = "";
  conversation.push({ role: "user", content: prompt });
  addMessage("user", prompt);
  const place = addMessage("assistant", "");
  const log = byId("messages");
  answering = new AbortController();
  byId("send").disabled = true;
  byId("stop").disabled = false;
  // Read out when it is complete, not token by token.
  log.setAttribute("aria-busy", "true");
  say("chat-state", "The model is answering.");
  let usage = null;
  let sources = [];
  const begun = performance.now();
  let first = null;
  try {
    for await (const event of events(await ask("/v1/chat/completions", chatRequest(), answering.signal))) {
      if (event.error) {
        throw new Error(event.error.message);
      }
      usage = event.usage ?? usage;
      const delta = event.choices?.[0]?.delta;
      const text = delta?.content ?? "";
      sources = delta?.file_search_results ?? sources;
      if (text) {
        first ??= performance.now() - begun;
        const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        place.textContent += text;
        if (isAtEnd) {
          log.scrollTop = log.scrollHeight;
        }
      }
    }
    showSources(place, sources, prompt);
    const seconds = ((performance.now() - begun) / 1000).toFixed(1);
    const counts = usage ? `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written, ` : "";
    say("chat-state", `${counts}${seconds} s, the first after ${((first ?? 0) / 1000).toFixed(2)} s.`);
  } catch (error) {
    if (error.name === "AbortError") {
      say("chat-state", "Stopped.");
    } else {
      sayError("chat-state", error);
    }
  } finally {
    answering = null;
    log.removeAttribute("aria-busy");
    byId("send").disabled = false;
    byId("stop").disabled = true;
    if (place.textContent) {
      conversation.push({ role: "assistant", content: place.textContent });
    } else {
      // Nothing was answered: the message can be sent again.
      conversation.pop();
      place.parentElement.previousElementSibling.remove();
      place.parentElement.remove();
      byId("prompt").value = byId("prompt").value || prompt;
    }
    byId("prompt").focus();
  }
}

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
byId("stop").addEventListener("click", () => answering?.abort());
byId("clear").addEventListener("click", () => {
  answering?.abort();
  conversation = [];
  byId("messages").replaceChildren();
  say("chat-state", "");
  byId("prompt").focus();
});

// Similar texts

const PER_REQUEST = 64;
const known = new Map();
let searching = null;
let waiting = null;

function lines(id) {
  return byId(id).value.split("\n").map((line) => line.trim()).filter((line) => line);
}

async function embed(model, texts, signal) {
  const missing = [...new Set(texts)].filter((text) => !known.has(`${model}\n${text}`));
  for (let start = 0; start < missing.length; start += PER_REQUEST) {
    const input = missing.slice(start, start + PER_REQUEST);
    const response = await ask("/v1/embeddings", { model, input, encoding_format: "float" }, signal);
    for (const { index, embedding } of (await response.json()).data) {
      known.set(`${model}\n${input[index]}`, embedding);
    }
  }
  return texts.map((text) => known.get(`${model}\n${text}`));
}

function cosine(one, other) {
  let product = 0;
  let left = 0;
  let right = 0;
  for (let i = 0; i < one.length; i += 1) {
    product += one[i] * other[i];
    left += one[i] * one[i];
    right += other[i] * other[i];
  }
  return product / (Math.sqrt(left * right) || 1);
}

// Documents

const WORD = /[\p{L}\p{N}]+/gu;
const SNIPPET = 240;

function wordsOf(query) {
  const all = [...query.toLowerCase().matchAll(WORD)].map((found) => found[0]);
  const long = all.filter((word) => word.length > 2);
  return long.length ? long : all;
}

// The words of a text that are in the query, or begin with a long one of it.
function matches(text, words) {
  return [...text.matchAll(WORD)].filter(({ 0: found }) => {
    const word = found.toLowerCase();
    return words.some((one) => word === one || (one.length > 3 && word.startsWith(one)));
  });
}

// Text with marked words: nodes of text, never HTML.
function marked(text, words) {
  const nodes = [];
  let end = 0;
  for (const found of matches(text, words)) {
    const mark = document.createElement("mark");
    mark.textContent = found[0];
    nodes.push(text.slice(end, found.index), mark);
    end = found.index + found[0].length;
  }
  return [...nodes, text.slice(end)];
}

// The part of a text with the most different words of the query.
function snippetOf(text, words) {
  const found = matches(text, words);
  let best = 0;
  let start = 0;
  for (const { index } of found) {
    const inside = found.filter((other) => other.index >= index && other.index < index + SNIPPET - 60);
    const count = new Set(inside.map((other) => other[0].toLowerCase())).size;
    if (count > best) {
      best = count;
      start = index;
    }
  }
  start = Math.max(0, start - 60);
  const space = text.slice(start, start + 40).search(/\s/u);
  start += start > 0 && space >= 0 ? space + 1 : 0;
  let end = Math.min(text.length, start + SNIPPET);
  if (end < text.length) {
    end = Math.max(text.lastIndexOf(" ", end), start + SNIPPET / 2);
  }
  const part = text.slice(start, end).replace(/\s+/gu, " ");
  return `${start > 0 ? "\u2026 " : ""}${part}${end < text.length ? " \u2026" : ""}`;
}

function placeOf({ filename, attributes }) {
  const { first_line: first, last_line: last, page, headings } = attributes ?? {};
  const lines = first === undefined ? "" : `:${first}${last > first ? `-${last}` : ""}`;
  return `${filename}${lines}${page === undefined ? "" : `, page ${page}`}${headings ? ` (${headings})` : ""}`;
}

function passageOf(result, words, before = "") {
  const text = result.content.map((part) => part.text).join("\n");
  const box = document.createElement("details");
  const summary = document.createElement("summary");
  const place = document.createElement("span");
  place.className = "place";
  place.textContent = `${before}${placeOf(result)}`;
  const snippet = document.createElement("span");
  snippet.append(...marked(snippetOf(text, words), words));
  summary.append(place, snippet);
  const whole = document.createElement("span");
  whole.className = "passage";
  whole.append(...marked(text, words));
  box.append(summary, whole);
  return box;
}

function showSources(place, sources, query) {
  if (!sources.length) {
    return;
  }
  const list = document.createElement("ul");
  list.className = "sources";
  list.setAttribute("aria-label", "Sources");
  list.append(...sources.map((source, index) => {
    const row = document.createElement("li");
    row.append(passageOf(source, wordsOf(query), `[${source.attributes?.source ?? index + 1}] `));
    return row;
  }));
  place.parentElement.append(list);
}

let finding = null;

async function findPassages() {
  finding?.abort();
  const query = byId("search-query").value.trim();
  const index = byId("search-index").value;
  if (!query || !index) {
    byId("found").replaceChildren();
    say("search-state", "");
    return;
  }
  const mine = new AbortController();
  finding = mine;
  const paths = byId("search-paths").value.split(/[\s,]+/).filter((path) => path);
  const reranker = byId("search-reranker").value;
  const body = { query, index, ...(paths.length ? { paths } : {}), ...(reranker ? { reranker } : {}) };
  say("search-state", "Searching.");
  try {
    const begun = performance.now();
    const { data } = await (await ask("/v1/search", body, mine.signal)).json();
    if (finding !== mine) {
      return;
    }
    const words = wordsOf(query);
    byId("found").replaceChildren(...data.map((result) => {
      const row = document.createElement("li");
      row.append(passageOf(result, words));
      return row;
    }));
    const count = data.length === 1 ? "1 passage" : `${data.length} passages`;
    say("search-state", data.length ? `${count} in ${Math.round(performance.now() - begun)} ms.` : "Nothing was found.");
  } catch (error) {
    if (finding === mine) {
      byId("found").replaceChildren();
    }
    sayError("search-state", error);
  }
}

byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  findPassages();
});

// Ranked texts

function showRanked(id, rows) {
  byId(id).replaceChildren(...rows.map(({ text, score }) => {
    const row = document.createElement("li");
    const bar = document.createElement("meter");
    bar.min = 0;
    bar.max = 1;
    bar.value = Math.max(0, Math.min(1, score));
    bar.setAttribute("aria-label", "similarity");
    row.append(bar, `${score.toFixed(3)}  ${text}`);
    return row;
  }));
}

async function search() {
  searching?.abort();
  const model = byId("similar-model").value;
  const query = byId("query").value.trim();
  const texts = lines("texts");
  if (!model || !query || !texts.length) {
    byId("ranked").replaceChildren();
    say("similar-state", "");
    return;
  }
  const mine = new AbortController();
  searching = mine;
  try {
    const begun = performance.now();
    const [vector, ...vectors] = await embed(model, [query, ...texts], mine.signal);
    if (searching !== mine) {
      return;
    }
    const rows = texts.map((text, index) => ({ text, score: cosine(vector, vectors[index]) }));
    showRanked("ranked", rows.sort((one, other) => other.score - one.score));
    say("similar-state", `${texts.length} texts in ${Math.round(performance.now() - begun)} ms.`);
    // What was typed on the way is not needed again.
    if (known.size > 5000) {
      known.clear();
    }
  } catch (error) {
    sayError("similar-state", error);
  }
}

function searchSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(search, 150);
}

for (const id of ["query", "texts", "similar-model"]) {
  byId(id).addEventListener("input", searchSoon);
}

// Rerank

byId("rerank-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const documents = lines("documents");
  try {
    const body = { model: byId("rerank-model").value, query: byId("question").value, documents };
    const { results } = await (await ask("/v1/rerank", body)).json();
    showRanked("reranked", results.map((one) => ({ text: documents[one.index], score: one.relevance_score })));
    say("rerank-state", `${results.length} documents.`);
  } catch (error) {
    sayError("rerank-state", error);
  }
});

// Status

let statusTimer = null;

function watchStatus(isShown) {
  clearInterval(statusTimer);
  if (isShown) {
    showStatus();
    statusTimer = setInterval(() => document.hidden || showStatus(), 2000);
  }
}

function parseMetrics(text) {
  const totals = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (found && !found[1].endsWith("_bucket")) {
      totals.set(found[1], (totals.get(found[1]) ?? 0) + Number(found[3]));
    }
  }
  return totals;
}

function figuresOf(totals) {
  const of = (name) => totals.get(`ortkit_${name}`) ?? 0;
  const mean = (name) => (of(`${name}_count`) ? of(`${name}_sum`) / of(`${name}_count`) : null);
  const count = (value, one, many) => `${Math.round(value).toLocaleString("en")} ${Math.round(value) === 1 ? one : many}`;
  const first = mean("time_to_first_token_seconds");
  const each = mean("time_per_output_token_seconds");
  const looked = of("prefix_cache_queries_total");
  const rows = [
    ["Now", `${count(of("num_requests_running"), "request is", "requests are")} computed, ${of("num_requests_waiting")} wait`],
    ["Requests", count(of("http_requests_total"), "request", "requests")],
    ["Tokens", `${count(of("prompt_tokens_total"), "token", "tokens")} read, ${count(of("generation_tokens_total"), "token", "tokens")} written`],
    ["First token", first === null ? "no answer yet" : `after ${first.toFixed(2)} s on average`],
    ["Speed of an answer", each === null ? "no answer yet" : `${(1 / each).toFixed(0)} tokens a second on average`],
    ["Prefix cache", looked ? `${(100 * of("prefix_cache_hits_total") / looked).toFixed(0)} % of prompt tokens were cached` : "not used yet"],
    ["Memory", `${((totals.get("process_resident_memory_bytes") ?? 0) / 2 ** 20).toFixed(0)} MiB`],
  ];
  return rows.flatMap(([name, value]) => {
    const term = document.createElement("dt");
    term.textContent = name;
    const text = document.createElement("dd");
    text.textContent = value;
    return [term, text];
  });
}

async function showStatus() {
  try {
    const ready = await fetch("/ready", { cache: "no-store" });
    await loadModels();
    byId("models").replaceChildren(...models.map((model) => {
      const row = document.createElement("li");
      row.textContent = model.kind === undefined ? model.id : `${model.id}: ${model.kind}`;
      return row;
    }));
    byId("indexes").replaceChildren(...indexes.map((index) => {
      const row = document.createElement("li");
      row.textContent = `${index.name}: ${index.file_counts.total.toLocaleString("en")} files, ${index.chunks.toLocaleString("en")} passages`;
      return row;
    }));
    byId("figures").replaceChildren(...figuresOf(parseMetrics(await (await ask("/metrics")).text())));
    const state = ready.ok ? "The server is ready." : "The server is ending, or not ready.";
    if (byId("status-state").textContent !== state) {
      say("status-state", state, !ready.ok);
    }
  } catch (error) {
    sayError("status-state", error);
  }
}

// Start

async function begin() {
  try {
    await loadModels();
    say("chat-state", "");
  } catch (error) {
    sayError("chat-state", error);
  }
}

byId("key").addEventListener("change", begin);
begin();
