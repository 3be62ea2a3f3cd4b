// Building what is shown. Text only ever becomes text.

/** Give a new element: a function listens to the event of its name, all else are attributes. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Give a copy of a part of index.html, and a function that finds an element in it. */
export function part(name) {
  const node = document.getElementById(`${name}-part`).content.firstElementChild.cloneNode(true);
  return { node, find: (selector) => node.querySelector(selector) };
}

/** Give a table of two things side by side; the first cell of each row is its header. */
export function comparison(heads, rows) {
  const row = ([first, ...rest]) => make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text)));
  const head = make("tr", {}, make("td"), ...heads.map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows.map(row)));
}

/** Show a dialog over the page; it is taken out when it is closed, by whatever. */
export function open(dialog) {
  dialog.addEventListener("close", () => dialog.open || dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

const status = document.querySelector("#messages [role=status]");

/** Say what was done. */
export function tell(text) {
  status.textContent = text;
}

/** Say above the page what failed, with a button that tries it again; nothing to say takes it away. */
export function warn(text, again) {
  const retry = again && make("button", { type: "button", click: () => { warn(); again(); } }, "Try again");
  status.parentElement.replaceChildren(status, ...(text ? [make("div", { role: "alert" }, text, retry ?? "")] : []));
}
