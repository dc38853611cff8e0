"use strict";
// Reads /openapi.json with the key that was typed and lets every operation be tried.
// Text goes in by textContent only: nothing a server says becomes markup.

const byId = (id) => document.getElementById(id);
const MAX_SHOWN_CHARACTERS = 100000;
let key = "";

// Tag → title and what it is for, in the order of the page; tags that are not here come last.
const groups = {
  openai: ["OpenAI", "What OpenAI's SDKs speak: base URL /v1."],
  predict: ["Predict", "One plain object in, one out. `name` is a deployment."],
  inference: ["Open Inference Protocol", "What the clients of Triton and KServe speak."],
  models: ["Models", "Pull, import, versions, aliases."],
  deployments: ["Deployments", "What is served, and how much of it."],
  jobs: ["Jobs and uploads", "Work longer than a request."],
  accounts: ["Keys and usage", ""],
  server: ["Server", ""],
  operations: ["Operations", "For probes and monitoring."],
};

const samples = {
  "/v1/chat/completions": {
    model: "chat", messages: [{ role: "user", content: "Hello!" }], max_tokens: 32, stream: false,
  },
  "/v1/completions": { model: "chat", prompt: "Once upon a time", max_tokens: 16 },
  "/v1/embeddings": { model: "embeddings", input: "a boat on the river", encoding_format: "float" },
  "/predict/{name}": { text: "The plot was thin but the acting was superb." },
  "/v2/models/{name}/infer": {
    inputs: [{ name: "input", shape: [1, 4], datatype: "FP32", data: [5.1, 3.5, 1.4, 0.2] }],
  },
};
samples["/v2/models/{name}/versions/{version}/infer"] = samples["/v2/models/{name}/infer"];

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  try {
    const openapi = await read("/openapi.json");
    tell("");
    byId("version").textContent = openapi.info.version;
    show(openapi);
  } catch (error) {
    tell(error.message);
    return;
  }
  suggest("deployments", "/v1/models", (answer) => answer.data.map((each) => each.id));
  suggest("models", "/platform/v1/models", (answer) => answer.items.map((each) => each.name));
});

function tell(text) {
  byId("message").textContent = text;
  byId("message").classList.toggle("failed", Boolean(text));
}

async function read(path) {
  const response = await fetch(path, { headers: { authorization: `Bearer ${key}` } });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message || answer.error);
  return answer;
}

async function suggest(id, path, readNames) {
  try {
    const options = readNames(await read(path)).map((name) => new Option(name, name));
    byId(id).replaceChildren(...options);
  } catch {
    byId(id).replaceChildren(); // names can be typed as well
  }
}

function show(openapi) {
  const rows = new Map(Object.keys(groups).map((tag) => [tag, []]));
  for (const [path, operations] of Object.entries(openapi.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags[0];
      if (!rows.has(tag)) rows.set(tag, []);
      rows.get(tag).push(makeOperation(path, method.toUpperCase(), operation, openapi));
    }
  }
  const filled = [...rows].filter(([, each]) => each.length);
  byId("operations").replaceChildren(...filled.map(makeGroup));
  byId("groups").replaceChildren(...filled.map(([tag]) => makeLink(tag)));
}

function makeLink(tag) {
  const link = document.createElement("a");
  link.href = `#${tag}`;
  link.textContent = titleOf(tag);
  return link;
}

function titleOf(tag) {
  return groups[tag] ? groups[tag][0] : tag;
}

function makeGroup([tag, rows]) {
  const group = byId("group-template").content.cloneNode(true);
  group.querySelector("h2").textContent = titleOf(tag);
  group.querySelector("h2").id = tag;
  write(group.querySelector(".about"), groups[tag] ? groups[tag][1] : "");
  group.querySelector(".rows").append(...rows);
  return group;
}

// Text in which `…` is code.
function write(element, text) {
  text.split("`").forEach((piece, index) => {
    const part = index % 2 ? document.createElement("code") : document.createTextNode(piece);
    if (index % 2) part.textContent = piece;
    element.append(part);
  });
}

function makeOperation(path, method, operation, openapi) {
  const element = byId("operation-template").content.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  const permission = operation["x-permission"];
  find(".method").textContent = method;
  find(".path").textContent = path;
  write(find(".summary"), operation.summary);
  find(".permission").textContent = permission;
  find(".permission").title =
    { open: "no key needed", any: "any key" }[permission] || `a key with the scope ${permission}`;
  const inputs = (operation.parameters || []).map((parameter) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.required = true;
    const isDeployment = parameter.name === "name";
    if (isDeployment || parameter.name === "model") {
      input.setAttribute("list", isDeployment ? "deployments" : "models");
    }
    label.append(`${parameter.name} `, input);
    find(".parameters").append(label);
    return [parameter.name, input];
  });
  const body = find("textarea");
  if (operation.requestBody) {
    body.value = JSON.stringify(samples[path] || makeSample(operation, openapi), null, 2);
    body.rows = Math.min(16, body.value.split("\n").length + 1);
  } else {
    find(".body-label").remove();
  }
  const [form, curl, answer, button] = [".try", ".curl", ".answer", "button"].map(find);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    const text = operation.requestBody ? body.value : null;
    await send(method, fill(path, inputs), text, curl, answer);
    button.disabled = false;
  });
  return element;
}

// What a body must have, and `dry_run` where it is known: trying something changes nothing.
function makeSample(operation, openapi) {
  const make = (schema) => {
    if (schema.$ref) return make(openapi.components.schemas[schema.$ref.split("/").pop()]);
    if ("default" in schema) return schema.default;
    if (schema.enum) return schema.enum[0];
    if (schema.type === "array") return [make(schema.items || {})];
    if (schema.type === "integer" || schema.type === "number") return schema.minimum || 1;
    if (schema.type === "boolean") return false;
    if (schema.type !== "object") return "";
    const properties = schema.properties || {};
    const sample = {};
    for (const name of schema.required || []) sample[name] = make(properties[name]);
    if (properties.dry_run) sample.dry_run = true;
    return sample;
  };
  return make(operation.requestBody.content["application/json"].schema);
}

function fill(path, inputs) {
  return inputs.reduce(
    (filled, [name, input]) =>
      filled.replace(`{${name}}`, input.value.split("/").map(encodeURIComponent).join("/")),
    path,
  );
}

function writeCurl(method, path, body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const verb = method === (body ? "POST" : "GET") ? "" : ` -X ${method}`;
  return (
    `curl -s${verb} ${quoted(location.origin + path)} \\\n  -H "Authorization: Bearer $WHERRY_API_KEY"` +
    (body ? ` \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(squeeze(body))}` : "")
  );
}

// The tokens of JSON, numbers as they were written; of other text, null.
function readTokens(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  return text.match(/"(?:\\.|[^"\\])*"|[{}[\],:]|[^\s{}[\],:"]+/g);
}

// JSON on one line; other text as it is.
function squeeze(text) {
  const tokens = readTokens(text);
  return tokens ? tokens.join("") : text;
}

// JSON with a line a field; other text as it is.
function format(text) {
  const tokens = readTokens(text);
  if (!tokens) return text;
  const isBroken = []; // of each open bracket: whether its items have lines of their own
  const newLine = () => (isBroken.at(-1) ? `\n${"  ".repeat(isBroken.filter(Boolean).length)}` : "");
  return tokens.reduce((written, token, index) => {
    if (token === "{" || token === "[") {
      isBroken.push(token === "{" ? tokens[index + 1] !== "}" : tokens[index + 1] === "{");
      return written + token + newLine();
    }
    if (token === "}" || token === "]") {
      const wasBroken = isBroken.pop();
      const indent = "  ".repeat(isBroken.filter(Boolean).length);
      return written + (wasBroken ? `\n${indent}` : "") + token;
    }
    if (token === ",") return `${written},${newLine() || " "}`;
    return written + (token === ":" ? ": " : token);
  }, "");
}

async function send(method, path, body, curl, answer) {
  curl.textContent = writeCurl(method, path, body);
  answer.textContent = "…";
  answer.classList.remove("failed");
  const headers = { authorization: `Bearer ${key}` };
  if (body) headers["content-type"] = "application/json";
  const begun = performance.now();
  try {
    const response = await fetch(path, { method, headers, body });
    answer.classList.toggle("failed", !response.ok);
    const id = response.headers.get("x-request-id");
    const print = (text) => {
      const took = Math.round(performance.now() - begun);
      const head = `${response.status} ${response.statusText}, ${took} ms${id ? `, ${id}` : ""}`;
      answer.textContent = `${head}\n\n${text.slice(0, MAX_SHOWN_CHARACTERS)}`;
    };
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += part.value;
      print(text);
      if (text.length > MAX_SHOWN_CHARACTERS) await reader.cancel();
    }
    print(format(text));
  } catch (error) {
    answer.classList.add("failed");
    answer.textContent = `the call failed: ${error}`;
  }
}
