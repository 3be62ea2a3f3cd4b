// Who did what when, newest first, with the values before and after where they differ.

import { call, fieldsOf, nextOf } from "./api.js";
import { go } from "./address.js";
import { comparison, make, part, tell, warn } from "./dom.js";

const SIZE = 25;

/** Show the history of one car or of all. */
export async function showHistory(main, parameters) {
  const { node, find } = part("history");
  const mark = parameters.get("mark");
  const more = find("[name=more]");
  const load = async (before) => {
    node.ariaBusy = "true";
    more.hidden = true;
    try {
      const { entries, next } = await read(mark, before);
      const items = await Promise.all(entries.map(async (entry) => itemOf(entry, await valuesBefore(entry, entries))));
      find(".count").textContent = entries.length ? "" : "Nothing was done yet.";
      find(".entries").append(...items);
      if (before) items[0].focus();
      more.hidden = !next;
      more.onclick = () => load(next);
    } catch (refusal) {
      find(".count").textContent = "";
      if (node.isConnected) warn(refusal.message, () => load(before));
    }
    node.ariaBusy = "false";
  };
  tell("");
  if (mark !== null) find("h1").textContent = `History of ${mark}`;
  find("[name=back]").addEventListener("click", () => history.state?.entered ? history.back() : go(""));
  main.replaceChildren(node);
  find("h1").focus();
  await load();
}

async function read(mark, before, limit = SIZE) {
  const path = mark === null ? "history" : `history/${encodeURIComponent(mark)}`;
  const { data, header } = await call("GET", path, { query: { limit, before } });
  return { entries: data, next: nextOf(header, "before") };
}

/** Give the values that a car had before an entry, as the entry before says: on this page, or further back. */
async function valuesBefore({ id, action, mark }, entries) {
  if (action === "created") return {};
  const older = entries.find((entry) => entry.mark === mark && entry.id < id) ?? (await read(mark, id, 1)).entries[0];
  return older?.auto ?? {};
}

function itemOf({ at, by, action, mark, auto }, old) {
  const rows = fieldsOf("Car")
    .filter(({ name }) => name !== "mark" && old[name] !== auto?.[name])
    .map(({ name, label }) => [label, String(old[name] ?? "—"), String(auto?.[name] ?? "—")]);
  const time = make("time", { datetime: at }, new Date(at).toLocaleString());
  const car = make("a", { href: `#/history?${new URLSearchParams({ mark })}` }, mark);
  const title = make("p", {}, make("b", {}, by), ` ${action} `, car, " ", time);
  const what = rows.length ? comparison(["Before", "After"], rows) : make("p", { class: "hint" }, "No value differs");
  return make("li", { class: "card", tabindex: "-1" }, title, what);
}
