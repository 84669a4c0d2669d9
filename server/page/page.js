// Images are uploaded once and then named by their ids, so that counting and asking again send next to nothing.

const byId = (id) => document.getElementById(id);
const COUNT_DELAY_MS = 250;
const UPLOADS_AT_ONCE = 4;

const images = []; // {file, name, url, id, tokens, error, and the elements item, text, button}
let model = null;
let counting = null; // the AbortController of the count that runs
let countTimer = 0;
let asking = null; // the AbortController of the answer that runs

function headers(extra = {}) {
  const key = byId("key").value.trim();
  return key ? { ...extra, authorization: `Bearer ${key}` } : extra;
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = new Error(body?.error?.message ?? `The server answered ${response.status}.`);
  error.status = response.status;
  throw error;
}

function sendJson(path, body, signal) {
  return ask(path, {
    method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal,
  });
}

function request() {
  const content = images.filter((image) => image.id)
    .map((image) => ({ type: "image_url", image_url: { url: image.id } }));
  content.push({ type: "text", text: byId("question").value });
  return { model: model.id, messages: [{ role: "user", content }], max_tokens: Number(byId("max-tokens").value) || 1 };
}

const whole = (number) => Math.round(number).toLocaleString("en");
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// The model

async function findModel() {
  try {
    const { data } = await (await ask("v1/models")).json();
    model = data[0];
    const window = model.effective_window;
    byId("model").textContent = `${model.id}: context length ${whole(model.max_model_len)} tokens, ` + (window
      ? `effective window ${window.censored ? "at least " : ""}${whole(window.tokens)} tokens or ${whole(window.images)} images ` +
        `(${window.task}, at ${percent(window.threshold)} accuracy; ${percent(window.confidence)} interval ` +
        `${whole(window.tokens_low)} to ${whole(window.tokens_high)} tokens).`
      : "effective window not measured; distill evaluate would.");
    problem("");
    count();
  } catch (error) {
    byId("access").open ||= error.status === 401;
    byId("model").textContent = "No model.";
    problem(error.message);
  }
}

// Images

async function addFiles(files) {
  const added = [...files].map((file) => ({ file, name: file.name, url: URL.createObjectURL(file) }));
  images.push(...added);
  added.forEach(addItem);
  showImages();
  const queue = [...added];
  const upload = async () => {
    for (let image = queue.shift(); image; image = queue.shift()) await uploadOne(image);
  };
  await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, upload));
  count();
}

async function uploadOne(image) {
  const form = new FormData();
  form.append("purpose", "vision");
  form.append("file", image.file, image.name);
  try {
    image.id = (await (await ask("v1/files", { method: "POST", body: form })).json()).id;
    if (!images.includes(image)) forget(image); // removed meanwhile
  } catch (error) {
    image.error = error.message;
  }
  showImages();
}

function forget(image) {
  image.item.remove();
  URL.revokeObjectURL(image.url);
  if (image.id) ask(`v1/files/${image.id}`, { method: "DELETE" }).catch(() => {});
}

function remove(image) {
  const place = images.indexOf(image);
  images.splice(place, 1);
  forget(image);
  showImages();
  (images[Math.min(place, images.length - 1)]?.button ?? byId("picker")).focus();
  count();
}

// Each image keeps its element: one that is made anew would lose the keyboard's focus.
function addItem(image) {
  const picture = document.createElement("img");
  picture.src = image.url;
  picture.alt = "";
  image.text = document.createElement("span");
  image.button = document.createElement("button");
  image.button.type = "button";
  image.button.textContent = "Remove";
  image.button.onclick = () => remove(image);
  image.item = document.createElement("li");
  image.item.append(picture, image.text, image.button);
  byId("images").append(image.item);
}

function showImages() {
  images.forEach((image, place) => {
    const state = image.error ?? (image.id ? (image.tokens ? `${whole(image.tokens)} tokens` : "") : "uploading …");
    image.text.textContent = `${place + 1}. ${image.name} ${state} `;
    image.item.className = image.error ? "bad" : "";
    image.button.setAttribute("aria-label", `Remove image ${place + 1}, ${image.name}`);
  });
  const ready = images.filter((image) => image.id).length;
  const failed = images.filter((image) => image.error).length;
  byId("uploads").textContent = images.length
    ? `${ready} of ${images.length} images uploaded${failed ? `, ${failed} cannot be used` : ""}.` : "";
  byId("clear").hidden = images.length === 0;
}

// The count

function count() {
  clearTimeout(countTimer);
  countTimer = setTimeout(countNow, COUNT_DELAY_MS);
}

async function countNow() {
  if (!model) return;
  counting?.abort();
  counting = new AbortController();
  try {
    const counted = await (await sendJson("v1/chat/completions/input_tokens", request(), counting.signal)).json();
    const ready = images.filter((image) => image.id);
    counted.images.forEach((image, place) => { if (ready[place]) ready[place].tokens = image.tokens; });
    showImages();
    showUse(counted);
  } catch (error) {
    if (error.name !== "AbortError") problem(error.message);
  }
}

function showUse(counted) {
  const { context_length: limit, effective_window: effective } = counted;
  const whole_bar = Math.max(limit, counted.input_tokens);
  byId("image-share").style.width = percent(counted.image_tokens / whole_bar).replace(" ", "");
  byId("text-share").style.width = percent(counted.text_tokens / whole_bar).replace(" ", "");
  byId("effective").hidden = !effective || effective > whole_bar;
  if (effective) byId("effective").style.left = percent(effective / whole_bar).replace(" ", "");
  const sentence = `${whole(counted.input_tokens)} tokens, ${whole(counted.image_tokens)} of them for ` +
    `${counted.images.length} images: ${percent(counted.window_use)} of the context length` +
    (effective ? `, ${percent(counted.effective_window_use)} of the effective window (the dashed line).` : ".");
  byId("use").textContent = sentence;
  byId("bar").setAttribute("aria-label", sentence);
  problem(counted.error?.message ?? counted.warning ?? "");
  byId("ask").disabled = !counted.fits;
}

function problem(text) {
  byId("problem").textContent = text;
}

// The answer

async function answer(event) {
  event.preventDefault();
  if (!model || asking) return;
  asking = new AbortController();
  const started = performance.now();
  const place = byId("answer");
  place.textContent = "";
  place.setAttribute("aria-busy", "true");
  byId("stop").hidden = false;
  problem("");
  let first = 0;
  try {
    const response = await sendJson("v1/chat/completions", { ...request(), stream: true }, asking.signal);
    for await (const delta of deltas(response.body)) {
      first ||= performance.now();
      place.textContent += delta;
    }
    showTiming(response.headers.get("server-timing") ?? "", started, first || performance.now(), performance.now());
  } catch (error) {
    if (error.name !== "AbortError") problem(error.message);
  } finally {
    asking = null;
    place.setAttribute("aria-busy", "false");
    byId("stop").hidden = true;
  }
}

async function* deltas(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk.choices?.[0]?.delta?.content ?? "";
    }
  }
}

function showTiming(header, started, first, ended) {
  const rows = header.split(",").map((entry) => entry.trim()).filter(Boolean).map((entry) => {
    const [name, ...rest] = entry.split(";");
    const duration = rest.find((each) => each.trim().startsWith("dur="));
    return [`server: ${name.replaceAll("_", " ")}`, Number(duration?.trim().slice(4) ?? NaN)];
  });
  rows.push(["until the first words, seen from here", first - started], ["until the end", ended - started]);
  byId("timing").tBodies[0].replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    const cell = document.createElement("td");
    cell.textContent = value.toFixed(1);
    row.append(head, cell);
    return row;
  }));
  byId("timing").hidden = false;
}

// What the person does

const drop = byId("drop");
const isFiles = (event) => event.dataTransfer?.types.includes("Files");
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    if (!isFiles(event)) return;
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  if (!isFiles(event)) return;
  event.preventDefault();
  drop.classList.remove("over");
  addFiles(event.dataTransfer.files);
});
byId("picker").addEventListener("change", (event) => {
  addFiles(event.target.files);
  event.target.value = "";
});
byId("clear").addEventListener("click", () => {
  images.splice(0).forEach(forget);
  showImages();
  count();
  byId("picker").focus();
});
byId("question").addEventListener("input", count);
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
byId("max-tokens").addEventListener("input", count);
byId("form").addEventListener("submit", answer);
byId("stop").addEventListener("click", () => asking?.abort());
byId("key").addEventListener("change", findModel);
addEventListener("pagehide", () => asking?.abort());

findModel();
