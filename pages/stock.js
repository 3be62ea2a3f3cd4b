// The stock as a table: searched, sorted and in pages, just as the address says.

import { call, fieldsOf, nextOf, session } from "./api.js";
import { enter, go, here } from "./address.js";
import { make, part, tell, warn } from "./dom.js";
import { exportStock, showImport } from "./transfer.js";

const SIZE = 50;
const PAUSE = 300; // milliseconds after the last key until the search; what takes longer is said to be loading

let view = null; // the part that is shown, and its `find`
let shown = null; // which cars are in it, as the address has them; null where they may have changed
let typing = null; // the pause after the last key, until what was typed is searched
let failed = false; // whether what is said above the page is about the cars
let last = 0; // request, whose answer counts: earlier ones are answered in vain

/** Ask for the cars anew when the stock is shown next. */
export function outdate() {
  shown = null;
}

/** Show the cars that the address names. It holds every page on the way there, so that Previous knows them. */
export async function showStock(main, parameters) {
  if (!view?.node.isConnected) mount(main);
  const listing = { search: parameters.get("search"), order_by: parameters.get("order_by") };
  const pages = parameters.getAll("after");
  const address = JSON.stringify([listing, pages]);
  if (address === shown) return;
  shown = address;
  const turn = ++last;
  const [table, count] = [view.find(".scroll"), view.find(".count")];
  const slow = setTimeout(() => { count.textContent = "Loading…"; }, PAUSE);
  table.ariaBusy = "true";
  showListing(listing);
  try {
    const first = pages.length ? null : await cars(listing, SIZE);
    const page = first ?? await cars(listing, SIZE, pages.at(-1));
    if (turn === last) showCars(page, pages);
    const { total } = first ?? await cars(listing, 1); // which is told on the first page only
    clearTimeout(slow);
    if (turn !== last) return;
    showCount(total, listing.search, pages.length + 1);
    if (failed) warn();
    failed = false;
  } catch (refusal) {
    if (turn !== last || !table.isConnected) return;
    shown = null;
    failed = true;
    count.textContent = "";
    warn(refusal.message, () => showStock(main, here().parameters));
  } finally {
    clearTimeout(slow);
    if (turn === last) table.ariaBusy = "false";
  }
}

/** Ask for a page; that there is no car at all is a refusal to the API, and none here. */
async function cars(listing, limit, after) {
  try {
    const { data, header } = await call("GET", "stock", { query: { ...listing, limit, after } });
    return { data, next: nextOf(header, "after"), total: header("X-Total-Count") };
  } catch (refusal) {
    if (refusal.sentence !== "No one autos found in DataBase") throw refusal;
    return { data: [], next: null, total: null };
  }
}

function mount(main) {
  view = part("stock");
  outdate();
  main.replaceChildren(view.node);
  if (session.account.role === "reader") view.node.querySelectorAll(".editor").forEach((button) => button.remove());
  view.find("thead tr").append(...fieldsOf("Car").map(({ name, label, schema }) => make(
    "th", { scope: "col", class: schema.type, "data-name": name },
    make("button", { type: "button", click: () => sort(name) }, label),
  )));
  view.find("tbody").addEventListener("click", ({ target }) => {
    const row = target.closest("tr");
    row.querySelector("button").focus(); // which is where the dialog gives the focus back
    enter("car", row.dataset.mark);
  });
  const on = (name, action) => view.find(`[name=${name}]`)?.addEventListener("click", action);
  on("add", () => enter("car", ""));
  on("import", showImport);
  on("export", () => exportStock(here().parameters));
  on("history", () => go("history", {}, { entered: true }));
  view.find("#search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(seek, PAUSE);
  });
  view.find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    seek();
  });
}

/** Search; what is typed in one go is one step in the browser's history. */
function seek() {
  clearTimeout(typing);
  typing = null;
  const search = view.find("#search").value;
  if (!view.node.isConnected || search === (here().parameters.get("search") ?? "")) return;
  move({ search, after: [] }, { replace: Boolean(history.state?.typed), typed: true });
}

function sort(name) {
  const order = here().parameters.get("order_by") ?? "mark";
  move({ order_by: order === name ? `-${name}` : name, after: [] });
}

/** Change some parameters of the address. */
function move(changes, state) {
  const { parameters } = here();
  for (const [name, value] of Object.entries(changes)) {
    parameters.delete(name);
    for (const one of [value].flat()) if (one) parameters.append(name, one);
  }
  tell("");
  scrollTo(0, 0);
  go("", parameters, state);
}

function showListing({ search, order_by }) {
  if (!typing) view.find("#search").value = search ?? "";
  const [first] = (order_by ?? "mark").split(",");
  for (const header of view.find("thead tr").cells) {
    const { name } = header.dataset;
    header.ariaSort = first === name ? "ascending" : first === `-${name}` ? "descending" : null;
  }
}

function showCars({ data, next }, pages) {
  const left = document.activeElement.closest?.("tr")?.dataset.mark;
  view.find("tbody").replaceChildren(...data.map((car) => make("tr", { "data-mark": car.mark }, ...fieldsOf("Car").map(
    ({ name, schema }) => name === "mark"
      ? make("th", { scope: "row" }, make("button", { type: "button", class: "link" }, car.mark))
      : make("td", { class: schema.type }, String(car[name])),
  ))));
  for (const [name, after] of [["previous", pages.length && pages.slice(0, -1)], ["next", next && [...pages, next]]]) {
    view.find(`[name=${name}]`).disabled = !after;
    view.find(`[name=${name}]`).onclick = () => move({ after });
  }
  if (left !== undefined) view.find(`[data-mark="${CSS.escape(left)}"] button`)?.focus();
}

function showCount(total, search, page) {
  const found = `${total === "0" ? "No" : total} ${total === "1" ? "car" : "cars"}`;
  view.find(".scroll").hidden = total === null;
  view.find(".count").textContent = total === null
    ? "There are no cars in stock yet."
    : `${found}${search ? ` with “${search}”` : ""}${page > 1 ? `, page ${page}` : ""}`;
}
