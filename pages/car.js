// One car in a dialog: looked at, corrected, added, deleted; and what to do when somebody else was quicker.

import { call, fieldsOf, session } from "./api.js";
import { go, here, leave } from "./address.js";
import { comparison, make, open, tell, warn } from "./dom.js";
import { addFields, attempt, formDialog, offer, valuesOf } from "./forms.js";
import { outdate } from "./stock.js";

let draft = null; // the car that was opened last: unless it was left by Cancel, what was typed stays

/** Show the car that the address names, "" for a new one, or none. */
export async function showCar(mark) {
  if (draft && draft.mark !== mark) {
    draft.dialog.close();
    if (draft.left) draft = null;
  }
  if (mark === null || draft?.dialog.open) return;
  if (draft?.mark === mark && draft.isChanged()) return open(draft.dialog);
  try {
    const found = mark ? await read(mark) : { car: null };
    if (here().parameters.get("car") !== mark || draft?.dialog.open) return;
    draft = new Draft(mark, found);
    open(draft.dialog);
  } catch (refusal) {
    outdate();
    leave("car");
    warn(refusal.message);
  }
}

const pathOf = (mark) => `auto/${encodeURIComponent(mark)}`;

async function read(mark) {
  const { data, header } = await call("GET", pathOf(mark));
  return { car: data, tag: header("ETag") };
}

/** A car as it was read, with its entity tag, and the inputs in which it is changed; of a new one there is neither. */
class Draft {
  constructor(mark, { car, tag }) {
    Object.assign(this, { mark, car, tag }, formDialog(mark || "Add car", () => this.save()));
    this.reads = session.account.role === "reader";
    this.inputs = addFields(this.form, fieldsOf("Car"));
    for (const [name, input] of Object.entries(this.inputs)) input.readOnly = this.reads || (name === "mark" && mark);
    this.find("input:not([readonly])")?.setAttribute("autofocus", "");
    this.fill(car ?? {});
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault(); // Escape leaves a question first
      if (this.find(".question").hidden) this.cancel();
      else this.edit();
    });
    this.edit();
  }

  /** Put a car into the inputs: what differs from it from now on was changed here. */
  fill(car) {
    for (const [name, input] of Object.entries(this.inputs)) input.value = car[name] ?? "";
    this.was = valuesOf(this.inputs);
  }

  changes() {
    return Object.fromEntries(Object.entries(valuesOf(this.inputs)).filter(([name, value]) => value !== this.was[name]));
  }

  isChanged() {
    return Object.keys(this.changes()).length > 0;
  }

  cancel() {
    this.left = true;
    leave("car");
  }

  done(message) {
    tell(message);
    outdate();
    this.cancel();
  }

  edit() {
    this.find(".question").hidden = true;
    this.find(".fields").hidden = false;
    const save = this.reads ? [] : [["Save", null, "primary"]];
    const history = this.car ? [["History", () => go("history", { mark: this.mark }, { entered: true })]] : [];
    const remove = this.car && !this.reads ? [["Delete", () => this.ask(), "danger"]] : [];
    offer(this.form, ...save, ["Cancel", () => this.cancel()], ...history, ...remove);
  }

  /** Ask something in place of the inputs, whose values stay. */
  question(content, ...buttons) {
    this.find(".question").replaceChildren(...content);
    this.find(".question").hidden = false;
    this.find(".fields").hidden = true;
    offer(this.form, ...buttons);
    this.find(".actions").lastElementChild.focus();
  }

  ask() {
    const remove = () => attempt(this.form, () => this.remove());
    const text = make("p", { role: "alert" }, `Delete ${this.mark} for good?`);
    this.question([text], ["Delete", remove, "danger"], ["Keep it", () => this.edit()]);
  }

  async remove() {
    try {
      this.done((await call("DELETE", pathOf(this.mark), { headers: { "If-Match": this.tag } })).data.Message);
    } catch (refusal) {
      if (refusal.status === 404) return this.done(refusal.message);
      if (refusal.status !== 412) throw refusal;
      await this.compare(refusal, () => this.remove());
    }
  }

  async save() {
    if (this.car && !this.isChanged()) return this.done("Nothing to change");
    try {
      this.done((await (this.car ? this.change() : this.add())).data.Message);
    } catch (refusal) {
      if (![404, 412].includes(refusal.status) && refusal.sentence !== "Auto with that mark exists") throw refusal;
      await this.compare(refusal, () => this.save());
    }
  }

  change() {
    return call("PATCH", pathOf(this.mark), { json: this.changes(), headers: { "If-Match": this.tag } });
  }

  /** Add the car: as a list of one, where no path could ask what is wrong with its mark. */
  add() {
    const car = valuesOf(this.inputs);
    if (!["", ".", ".."].includes(car.mark)) return call("POST", pathOf(car.mark), { json: car });
    return call("POST", "stock", { json: [car] }).catch((refusal) => {
      refusal.message = refusal.message.replace("item 1: ", "");
      throw refusal;
    });
  }

  /**
   * Show how the car is now beside how it shall be. What was not touched here follows what others did, whichever is
   * kept. Where nothing differs there is nothing to ask: an earlier try got through, and only its answer was lost.
   */
  async compare(refusal, retry) {
    const mine = valuesOf(this.inputs);
    const touched = this.changes();
    const theirs = await read(mine.mark).catch((gone) => {
      if (gone.status !== 404) throw gone;
      return { car: null };
    });
    const differing = fieldsOf("Car").filter(({ name }) => mine[name] !== theirs.car?.[name]);
    const keep = () => {
      this.take(theirs);
      for (const [name, value] of Object.entries(touched)) this.inputs[name].value = value;
      return retry();
    };
    if (!differing.length) return keep();
    const rows = differing.map(({ name, label }) => (
      [label, `${mine[name]}${name in touched ? "" : " (not changed)"}`, String(theirs.car?.[name] ?? "deleted")]
    ));
    this.question(
      [
        make("p", { class: "refusal", role: "alert" }, refusal.message),
        comparison(["Mine", "Theirs"], rows),
        make("p", { class: "hint" }, "Keep mine saves what you changed, and leaves the rest as it is now."),
      ],
      ["Keep mine", () => attempt(this.form, keep), "primary"],
      ["Take theirs", () => this.accept(theirs)],
    );
  }

  accept(theirs) {
    outdate();
    if (!theirs.car) return this.cancel();
    this.take(theirs);
    this.find("input:not([readonly])").focus();
  }

  /** Go on from how the car is now. */
  take({ car, tag }) {
    Object.assign(this, { car, tag });
    this.edit();
    if (!car) return;
    this.fill(car);
    if (car.mark === this.mark) return;
    this.mark = car.mark; // what was to be added was there already
    this.find("h2").textContent = car.mark;
    this.inputs.mark.readOnly = true;
    const { view, parameters } = here();
    parameters.set("car", car.mark);
    go(view, parameters, { ...history.state, replace: true });
  }
}
