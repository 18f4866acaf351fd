// What the reader chose, kept in this browser. The key lives as long as the tab.

const DEFAULTS = {
  think: false, remember: true, temperature: "0.6", top_p: "0.95",
  max_tokens: "", seed: "",
};
const STORE = "r1lite-settings";
const element = (id) => document.getElementById(id);

function read(id) {
  const input = element(id);
  return input.type === "checkbox" ? input.checked : input.value;
}

function write(values) {
  for (const [id, value] of Object.entries(values)) {
    const input = element(id);
    if (input.type === "checkbox") input.checked = value;
    else input.value = value;
  }
  showNumbers();
}

function showNumbers() {
  for (const output of document.querySelectorAll("aside output"))
    output.value = Number(element(output.htmlFor).value).toFixed(2);
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

/** Fill the form and save it whenever it changes. */
export function setUp() {
  const known = Object.entries(stored()).filter(([id]) => id in DEFAULTS);
  write({ ...DEFAULTS, ...Object.fromEntries(known) });
  element("key").value = sessionStorage.getItem(STORE) ?? "";
  const form = document.querySelector("aside form");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    showNumbers();
    const now = Object.keys(DEFAULTS).map((id) => [id, read(id)]);
    localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(now)));
    sessionStorage.setItem(STORE, key());
  });
  element("reset").addEventListener("click", () => {
    write(DEFAULTS);
    localStorage.removeItem(STORE);
  });
}

export const key = () => element("key").value.trim();
export const remembers = () => read("remember");

/** The sampling fields of a request; `attempt` moves a fixed seed on. */
export function sampling(attempt) {
  const body = {
    temperature: Number(read("temperature")),
    top_p: Number(read("top_p")),
    chat_template_kwargs: { thinking: read("think") },
  };
  if (read("max_tokens")) body.max_tokens = Number(read("max_tokens"));
  if (read("seed")) body.seed = Number(read("seed")) + attempt;
  return body;
}
