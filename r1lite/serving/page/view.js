// The conversation on the page. Text goes in as text nodes only, never as HTML.

const talk = document.getElementById("talk");

function make(name, className, text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

/** Follow the text unless the reader has scrolled up. */
export function following(change) {
  const near = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  change();
  if (near) talk.scrollTop = talk.scrollHeight;
}

export function button(text, act) {
  const made = make("button", "link", text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

export function addQuestion(text) {
  const turn = make("article", "turn user");
  turn.append(make("h2", "hidden", "You"), make("p", "", text));
  following(() => talk.append(turn));
  talk.scrollTop = talk.scrollHeight;
  return turn;
}

/** One answer, growing: thinking folded above it, facts below it. */
export class Answer {
  static opened = false; // thinking stays open for a reader who opened it once

  constructor(name) {
    this.turn = make("article", "turn model waiting writing");
    this.turn.setAttribute("aria-busy", "true");
    this.thinking = make("details", "thinking");
    this.thinking.hidden = true;
    this.thinking.open = Answer.opened;
    this.label = make("span", "", "Thinking");
    this.tail = make("bdi", "");
    const tail = make("span", "tail");
    tail.setAttribute("aria-hidden", "true");
    tail.append(this.tail);
    const summary = make("summary");
    summary.append(this.label, tail);
    summary.addEventListener("click", () => (Answer.opened = !this.thinking.open));
    this.reasoning = make("p");
    this.thinking.append(summary, this.reasoning);
    this.text = make("p", "text");
    this.error = make("p", "error");
    this.error.setAttribute("role", "alert");
    this.facts = make("footer", "facts");
    this.speed = make("span", "speed");
    this.facts.append(this.speed);
    this.turn.append(make("h2", "", name), this.thinking, this.text, this.error, this.facts);
    following(() => talk.append(this.turn));
    talk.scrollTop = talk.scrollHeight;
  }

  /** Add a piece of reasoning; the folded line shows its end. */
  think(piece) {
    following(() => {
      this.turn.classList.remove("waiting");
      this.thinking.hidden = false;
      this.reasoning.append(piece);
      this.tail.textContent = this.reasoning.textContent.slice(-120).replace(/\s+/g, " ");
    });
  }

  say(piece) {
    following(() => {
      this.turn.classList.remove("waiting");
      this.text.append(piece);
    });
  }

  /** `label` of the folded thinking and the line of facts. */
  report(label, speed) {
    this.label.textContent = label;
    this.speed.textContent = speed;
  }

  fail(message) {
    following(() => (this.error.textContent = message));
  }

  end(...buttons) {
    this.turn.classList.remove("waiting", "writing");
    this.turn.removeAttribute("aria-busy");
    this.tail.textContent = "";
    const acts = make("span", "acts");
    acts.append(...buttons);
    following(() => this.facts.append(acts));
  }

  /** A later turn follows: this one can no longer be made again. */
  settle() {
    for (const made of this.facts.querySelectorAll("button.again")) made.remove();
  }
}
