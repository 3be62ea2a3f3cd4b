// Whole inventories: the cars that are shown out to a file, and a CSV file in, with what is wrong with which line.

import { call, fieldsOf, Refusal } from "./api.js";
import { go, here } from "./address.js";
import { make, open, part, tell, warn } from "./dom.js";
import { formDialog, offer } from "./forms.js";
import { outdate } from "./stock.js";

const MOST_LINES = 10; // that are shown of one record
const OPEN = /^(?:(?:"(?:[^"]|"")*"|[^",;][^,;]*|)[,;])*"(?:[^"]|"")*$/; // ends within a quoted field

/** Save the cars that a listing names, all pages of them, as a file. */
export async function exportStock(parameters) {
  const query = { search: parameters.get("search"), order_by: parameters.get("order_by") };
  tell("Exporting…");
  try {
    const { data } = await call("GET", "stock", { query, headers: { Accept: "text/csv" } });
    const href = URL.createObjectURL(data);
    make("a", { href, download: "stock.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    tell("Exported as stock.csv");
  } catch (refusal) {
    tell("");
    warn(refusal.message, () => exportStock(parameters));
  }
}

/** Ask for a file, and send it; closing the dialog ends that. */
export function showImport() {
  const { dialog, form, find } = formDialog("Import cars", async () => {
    const { file: { files: [file] }, method } = form.elements;
    find(".question").hidden = true;
    if (!file) throw new Refusal(0, { Error: "Choose a CSV file first" });
    try {
      const progress = (part) => showProgress(find, part);
      const { data } = await call(method.value, "stock", { file, progress, signal: closed.signal });
      tell(data.Message);
    } catch (refusal) {
      return await showErrors(find, refusal, file);
    } finally {
      find(".progress").hidden = true;
    }
    dialog.close();
    outdate();
    go(here().view, here().parameters, { replace: true });
  });
  const closed = new AbortController();
  dialog.addEventListener("close", () => closed.abort());
  find(".fields").append(part("import").node);
  find("#columns").textContent = fieldsOf("Car").map(({ name }) => name).join(", ");
  offer(form, ["Import", null, "primary"], ["Cancel", () => dialog.close()]);
  open(dialog);
}

function showProgress(find, sent) {
  find(".progress").hidden = false;
  find(".progress label").textContent = sent < 1 ? "Sending…" : "Sent. The cars are being checked and stored…";
  if (sent < 1) find("progress").value = sent;
  else find("progress").removeAttribute("value"); // nobody knows how long the rest takes
}

/** List what is wrong by line, each with the text of its line in the file; throws what is wrong with all of it. */
async function showErrors(find, refusal, file) {
  const numbers = refusal.errors.map((sentence) => Number(sentence.match(/^line (\d+): /)?.[1]));
  if (!numbers[0]) throw refusal;
  const lines = (await file.text()).split(/\r\n|\n|\r/);
  find(".question").replaceChildren(make("div", { role: "alert" },
    make("p", { class: "refusal" }, "Nothing was imported. What is wrong:"),
    make("ol", { class: "errors", tabindex: "0" }, ...refusal.errors.map((sentence, at) => (
      make("li", {}, sentence, make("code", {}, recordAt(lines, numbers[at])))
    ))),
  ));
  find(".question").hidden = false;
}

/** Give the text of the record that begins at a line: where a quoted field is open at its end, the next line too. */
function recordAt(lines, number) {
  let end = number;
  while (end < number + MOST_LINES && end < lines.length && OPEN.test(lines.slice(number - 1, end).join("\n"))) end++;
  return lines.slice(number - 1, end).join("\n");
}
