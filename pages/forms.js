// Forms: inputs made from the API's description, one send at a time, refusals beside the input that they name.

import { Refusal } from "./api.js";
import { make, part } from "./dom.js";

/** Add an input for each field to a form, with its limits; `attributes` are those of some by name. Gives the inputs. */
export function addFields(form, fields, attributes = {}) {
  return Object.fromEntries(fields.map(({ name, label, schema, required }) => {
    const id = `field-${name}`;
    const number = schema.type === "integer";
    const input = make("input", {
      id, name, required, type: number ? "number" : "text", min: schema.minimum, max: schema.maximum,
      maxlength: schema.maxLength, autocomplete: "off", "aria-describedby": `${id}-hint ${id}-refusal`, ...attributes[name],
    });
    const most = schema.maximum < Number.MAX_SAFE_INTEGER ? `to ${schema.maximum}` : "or more";
    const hint = make("p", { class: "hint", id: `${id}-hint` }, number ? `${schema.minimum} ${most}` : "");
    const refusal = make("p", { class: "refusal", role: "alert", id: `${id}-refusal` });
    form.querySelector(".fields").append(
      make("div", { class: "field" }, make("label", { for: id }, label), hint, input, refusal),
    );
    return [name, input];
  }));
}

/** Give what was typed as the API keeps it: numbers as numbers, what is no number as null, text in NFC. */
export function valuesOf(inputs) {
  return Object.fromEntries(Object.entries(inputs).map(([name, { type, value }]) => (
    [name, type !== "number" ? value.normalize() : value === "" ? null : Number(value)]
  )));
}

/** Give a dialog with a form of a title, which calls `send` when it is sent. */
export function formDialog(title, send) {
  const { node: dialog, find } = part("dialog");
  const form = find("form");
  find("h2").textContent = title;
  onSubmit(form, send);
  return { dialog, form, find };
}

/** Put buttons below a form, by their names and what they do; one that does nothing sends the form. */
export function offer(form, ...buttons) {
  form.querySelector(".actions").replaceChildren(...buttons.map(([name, click, kind = ""]) => (
    make("button", { type: click ? "button" : "submit", class: kind, click }, name)
  )));
}

/** Call a function when a form is sent. */
export function onSubmit(form, send) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(form, send);
  });
}

/** Do something for a form, unless it is at work already; a refusal is shown in it, and what was typed stays. */
export async function attempt(form, action) {
  if (form.ariaBusy === "true") return;
  form.querySelectorAll(".refusal").forEach((note) => { note.textContent = ""; });
  form.querySelectorAll("[aria-invalid]").forEach((input) => input.removeAttribute("aria-invalid"));
  form.ariaBusy = "true";
  try {
    await action();
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    refuse(form, refusal.message);
  } finally {
    form.ariaBusy = "false";
  }
}

/** Show a refusal beside the input that it names, or else below all of them. */
function refuse(form, message) {
  const input = form.elements.namedItem(message.match(/^(\w+): /)?.[1] ?? "");
  const beside = input?.parentElement.querySelector(".refusal");
  (beside ?? form.querySelector(":scope > .refusal")).textContent = message;
  if (!beside) return;
  input.ariaInvalid = "true";
  input.focus();
}
