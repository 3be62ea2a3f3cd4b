// The page: what the address says is shown to whoever is logged in, and a form to anybody else.

import { begin, call, fieldsOf, session } from "./api.js";
import { here, watch } from "./address.js";
import { showCar } from "./car.js";
import { open, part, tell, warn } from "./dom.js";
import { addFields, attempt, formDialog, offer, onSubmit, valuesOf } from "./forms.js";
import { showHistory } from "./history.js";
import { showStock } from "./stock.js";

const main = document.getElementById("main");
const account = document.getElementById("account");

async function start() {
  try {
    session.description = (await call("GET", "openapi.json")).data;
  } catch (refusal) {
    return warn(refusal.message, start);
  }
  account.querySelector("[name=password]").addEventListener("click", showPassword);
  account.querySelector("[name=log-out]").addEventListener("click", logOut);
  document.addEventListener("session", ({ detail }) => route(detail));
  watch(() => route());
}

async function route(reason) {
  if (!session.token) return showLogIn(reason);
  try {
    session.account ??= (await call("GET", "account")).data;
  } catch (refusal) {
    return session.token && warn(refusal.message, route);
  }
  account.querySelector(".user").textContent = session.account.username;
  account.hidden = false;
  const { view, parameters } = here();
  const show = view === "history" ? showHistory : showStock;
  await Promise.all([showCar(parameters.get("car")), show(main, parameters)]);
}

function showLogIn(reason = "") {
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  account.hidden = true;
  tell("");
  warn();
  const { node: form, find } = part("log-in");
  const inputs = addFields(form, fieldsOf("Credentials"), {
    username: { autocomplete: "username", autocapitalize: "none", spellcheck: "false" },
    password: { type: "password", autocomplete: "current-password" },
  });
  const logIn = async () => begin((await call("POST", "auth", { json: valuesOf(inputs) })).data.access_token);
  onSubmit(form, logIn);
  find("[name=register]").addEventListener("click", () => attempt(form, async () => {
    await call("POST", "register", { json: valuesOf(inputs) });
    await logIn();
  }));
  if (!("/register" in session.description.paths)) find("[name=register]").remove();
  find(":scope > .refusal").textContent = reason;
  main.replaceChildren(form);
  inputs.username.focus();
}

async function logOut() {
  try {
    await call("POST", "logout");
    sessionStorage.clear();
    location.reload(); // so that nothing stays of what was typed or shown
  } catch (refusal) {
    if (session.token) warn(refusal.message, logOut);
  }
}

/** Ask for another password. It ends every token, also this one, so log in anew. */
function showPassword() {
  const { dialog, form } = formDialog("Change password", async () => {
    const json = valuesOf(inputs);
    const { data } = await call("PUT", "account/password", { json });
    dialog.close();
    const again = { username: session.account.username, password: json.new_password };
    begin((await call("POST", "auth", { json: again })).data.access_token);
    tell(data.Message);
  });
  const inputs = addFields(form, fieldsOf("NewPassword"), {
    password: { type: "password", autocomplete: "current-password" },
    new_password: { type: "password", autocomplete: "new-password" },
  });
  offer(form, ["Change password", null, "primary"], ["Cancel", () => dialog.close()]);
  open(dialog);
}

start();
