// Runs the script of the page against a server, with a document of its own in place of a browser's: node page_driver.mjs
// FOLDER URL KEY. Prints what a person would see, as JSON.

import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, base, key] = process.argv.slice(2);
const elements = new Map();

class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, value: "", own: "", hidden: false });
    Object.assign(this, { disabled: false, scrollTop: 0, scrollHeight: 0, clientHeight: 0, parentElement: null });
    this.classList = { toggle: () => {} };
  }
  get textContent() {
    return this.own + this.children.map((child) => child.textContent ?? child).join("");
  }
  set textContent(text) {
    this.own = text;
    this.children = [];
  }
  get previousElementSibling() {
    const { children } = this.parentElement;
    return children[children.indexOf(this) - 1];
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  getAttribute(name) {
    return this.attributes[name];
  }
  removeAttribute(name) {
    delete this.attributes[name];
  }
  addEventListener(name, listener) {
    this.listeners[name] = listener;
  }
  append(...added) {
    for (const child of added) {
      if (child instanceof Element) {
        child.parentElement = this;
      }
      this.children.push(child);
    }
  }
  replaceChildren(...added) {
    this.textContent = "";
    this.append(...added);
    if (this.tag === "select" && added.length) {
      this.value = added[0].value;
    }
  }
  remove() {
    const { parentElement } = this;
    parentElement.children = parentElement.children.filter((child) => child !== this);
  }
  querySelector() {
    this.missing ??= new Element("p");
    return this.missing;
  }
  focus() {}
}

const html = fs.readFileSync(path.join(folder, "index.html"), "utf8");
for (const [tag, name] of html.matchAll(/<(\w+)[^>]*\bid="[^"]+"[^>]*>/g)) {
  const element = new Element(name);
  for (const [, attribute, value] of tag.matchAll(/([\w-]+)="([^"]*)"/g)) {
    element.attributes[attribute] = value;
  }
  element.id = element.attributes.id;
  element.value = element.attributes.value ?? "";
  elements.set(element.attributes.id, element);
}
const at = (id) => elements.get(id);
globalThis.document = {
  hidden: false,
  getElementById: at,
  querySelectorAll: () => [...elements.values()].filter((element) => element.attributes.role === "tab"),
  createElement: (tag) => new Element(tag),
};
globalThis.Option = class extends Element {
  constructor(text, value) {
    super("option");
    Object.assign(this, { own: text, value });
  }
};
const origin = globalThis.fetch;
// So that the long answer does not end by itself: without the end token.
const endless = (body) => body?.replace('"max_completion_tokens":900', '"max_completion_tokens":900,"logit_bias":{"2":-100}');
globalThis.fetch = (place, options) => origin(base + place, { ...options, body: endless(options?.body) });

async function until(condition) {
  for (let tries = 0; !condition(); tries += 1) {
    if (tries > 1500) {
      throw new Error(`it did not happen: ${condition}; ${at("chat-state").textContent} ${at("status-state").textContent}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const seen = {};
const copy = path.join(process.cwd(), "page.mjs");
fs.copyFileSync(path.join(folder, "page.js"), copy);
await import(pathToFileURL(copy));

await until(() => at("chat-state").textContent);
seen.without_key = at("chat-state").textContent;
at("key").value = key;
at("key").listeners.change();
await until(() => at("chat-model").value);
seen.models = ["chat", "similar", "rerank"].map((panel) => at(`${panel}-model`).value);

at("texts").value = "the lazy dog\n\nthe quick brown fox\nand the dog sleeps";
at("query").value = "the quick brown fox";
at("query").listeners.input();
await until(() => at("similar-state").textContent);
seen.ranked = at("ranked").children.map((row) => row.textContent);

at("question").value = "fox";
at("documents").value = "the lazy dog\nthe quick brown fox";
at("rerank-form").listeners.submit({ preventDefault() {} });
await until(() => at("rerank-state").textContent);
seen.reranked = at("reranked").children.map((row) => row.textContent);

seen.indexes = [at("search-index").value, at("chat-index").value, at("documents-row").hidden];
seen.rerankers = at("search-reranker").children.map((option) => option.value);
const marks = (element) => [
  ...(element.tag === "mark" ? [element.textContent] : []),
  ...element.children.filter((child) => child instanceof Element).flatMap(marks),
];
const passages = (list) => list.children.map((row) => {
  const [summary, whole] = row.children[0].children;
  return { place: summary.children[0].textContent, snippet: summary.children[1].textContent, text: whole.textContent, marks: marks(whole) };
});
at("search-query").value = "quick Foxes <b>";
at("search-paths").value = "*.md, dogs/**";
at("search-form").listeners.submit({ preventDefault() {} });
await until(() => at("found").children.length);
seen.found = passages(at("found"));
seen.found_state = at("search-state").textContent;
at("search-paths").value = "*.pdf";
at("search-form").listeners.submit({ preventDefault() {} });
await until(() => !at("found").children.length);
seen.nothing_found = at("search-state").textContent;
at("search-paths").value = "../x";
at("search-form").listeners.submit({ preventDefault() {} });
await until(() => at("search-state").textContent !== seen.nothing_found && at("search-state").textContent !== "Searching.");
seen.refused = at("search-state").textContent;

at("prompt").value = "the quick fox";
at("max-tokens").value = "6";
at("temperature").value = "0";
at("use-documents").checked = true;
at("chat-form").listeners.submit({ preventDefault() {} });
await until(() => at("chat-state").textContent.includes("written"));
seen.grounded = at("messages").children[1].children[1].textContent;
seen.sources = passages(at("messages").children[1].children[2]);
at("use-documents").checked = false;
at("clear").listeners.click();

at("prompt").value = "the quick";
at("max-tokens").value = "6";
at("temperature").value = "0";
at("prompt").listeners.keydown({ key: "Enter", shiftKey: false, isComposing: false, preventDefault() {} });
await until(() => / s\.$/.test(at("chat-state").textContent));
seen.answer = at("messages").children[1].children[1].textContent;
seen.answered = at("chat-state").textContent;

at("prompt").value = "and more";
at("max-tokens").value = "900";
at("chat-form").listeners.submit({ preventDefault() {} });
await until(() => at("messages").children[3]?.children[1].textContent);
seen.is_busy = [at("send").disabled, at("stop").disabled, at("messages").getAttribute("aria-busy")];
at("stop").listeners.click();
await until(() => at("chat-state").textContent === "Stopped.");
seen.is_free = [at("send").disabled, at("stop").disabled, at("messages").getAttribute("aria-busy") ?? null];

at("tab-chat").listeners.keydown({ key: "End", preventDefault() {} });
await until(() => at("figures").children.length);
seen.listed = at("indexes").children.map((row) => row.textContent);
seen.shown = ["chat", "search", "similar", "rerank", "status"].filter((panel) => !at(panel).hidden);
seen.state = at("status-state").textContent;
seen.figures = at("figures").children.map((child) => child.textContent);
console.log(JSON.stringify(seen));
process.exit(0);
