"use strict";
// Reads /openapi.json with the key that was typed and lets every operation be tried.
// Text goes in by textContent only: nothing a server says becomes markup.

const byId = (id) => document.getElementById(id);
let key = "";

const samples = {
  "/v1/chat/completions": { model: "chat", messages: [{ role: "user", content: "Hello!" }], max_tokens: 32 },
  "/v1/completions": { model: "chat", prompt: "Once upon a time", max_tokens: 16 },
  "/v1/embeddings": { model: "embeddings", input: "a boat on the river", encoding_format: "float" },
  "/predict/{name}": { text: "The plot was thin but the acting was superb." },
  "/v2/models/{name}/infer": {
    inputs: [{ name: "input", shape: [1, 4], datatype: "FP32", data: [5.1, 3.5, 1.4, 0.2] }],
  },
};

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  const response = await fetch("/openapi.json", { headers: { authorization: `Bearer ${key}` } });
  const document_ = await response.json();
  if (!response.ok) {
    byId("message").textContent = document_.error.message;
    return;
  }
  byId("message").textContent = "";
  byId("version").textContent = document_.info.version;
  show(document_);
});

function show(openapi) {
  const groups = new Map();
  for (const [path, operations] of Object.entries(openapi.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(makeOperation(path, method.toUpperCase(), operation));
    }
  }
  byId("operations").replaceChildren(...[...groups].map(makeGroup));
}

function makeGroup([tag, rows]) {
  const group = byId("group-template").content.cloneNode(true);
  group.querySelector("h2").textContent = tag;
  group.querySelector(".rows").append(...rows);
  return group;
}

function makeOperation(path, method, operation) {
  const element = byId("operation-template").content.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  find(".method").textContent = method;
  find(".path").textContent = path;
  find(".summary").textContent = operation.summary;
  find(".permission").textContent = operation["x-permission"];
  const inputs = (operation.parameters || []).map((parameter) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.required = true;
    label.append(`${parameter.name} `, input);
    find(".parameters").append(label);
    return [parameter.name, input];
  });
  const body = find("textarea");
  if (operation.requestBody) body.value = JSON.stringify(samples[path] || {}, null, 2);
  else find(".body-label").remove();
  const [form, curl, answer] = [find("form"), find(".curl"), find(".answer")];
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(method, fill(path, inputs), operation.requestBody ? body.value : null, curl, answer);
  });
  return element;
}

function fill(path, inputs) {
  return inputs.reduce(
    (filled, [name, input]) =>
      filled.replace(`{${name}}`, input.value.split("/").map(encodeURIComponent).join("/")),
    path,
  );
}

async function send(method, path, body, curl, answer) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  curl.textContent =
    `curl -s ${location.origin}${path} -X ${method} -H "Authorization: Bearer $WHERRY_API_KEY"` +
    (body ? ` -H 'Content-Type: application/json' -d ${quoted(body)}` : "");
  answer.textContent = "…";
  const headers = { authorization: `Bearer ${key}` };
  if (body) headers["content-type"] = "application/json";
  const begun = performance.now();
  try {
    const response = await fetch(path, { method, headers, body });
    const status = () => `${response.status}  ${Math.round(performance.now() - begun)} ms\n\n`;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += part.value;
      answer.textContent = status() + text.slice(0, 100000);
    }
    if (!text) answer.textContent = status();
  } catch (error) {
    answer.textContent = `the call failed: ${error}`;
  }
}
