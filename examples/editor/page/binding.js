// A <textarea> that shows a Y.Text and writes into it.

/**
 * What turns `before` into `after`: { index, remove, insert }, as one replacement. `caret` is where the caret is in
 * `after`: of several ways to see it ("aa" into "aaa") the one that ends there is meant.
 */
export function difference(before, after, caret) {
  const most = Math.min(before.length, after.length);
  let end = 0; // how much is the same at the end, behind the caret
  while (end < most && end < after.length - caret && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  let index = 0;
  while (index < most - end && before[index] === after[index]) index += 1;
  // Characters outside the first plane are two units; half a one cannot be stored.
  if (isLow(before, index) || isLow(after, index)) index -= 1;
  if (isLow(before, before.length - end) || isLow(after, after.length - end)) end -= 1;
  return { index, remove: before.length - end - index, insert: after.slice(index, after.length - end) };
}

/** Whether a pair of units would be cut in two at `index`. */
function isLow(text, index) {
  const unit = text.charCodeAt(index);
  const before = text.charCodeAt(index - 1);
  return unit >= 0xdc00 && unit < 0xe000 && before >= 0xd800 && before < 0xdc00;
}

/**
 * Binds `area` to `text`; `local` is the origin of what is typed here. Returns { receive(apply) }: runs `apply`, which
 * changes the text from elsewhere, at once, or when the composition of a character (an input method's) is over, which
 * a change of the area's value would break.
 */
export function bind(area, text, local) {
  let composing = false;
  const held = [];
  area.value = text.toString();

  area.addEventListener('input', () => {
    if (composing) return;
    const { index, remove, insert } = difference(text.toString(), area.value, area.selectionEnd);
    text.doc.transact(() => {
      if (remove) text.delete(index, remove);
      if (insert) text.insert(index, insert);
    }, local);
  });
  area.addEventListener('compositionstart', () => { composing = true; });
  area.addEventListener('compositionend', () => {
    composing = false;
    area.dispatchEvent(new Event('input'));
    for (const apply of held.splice(0)) apply();
  });

  text.observe((event, transaction) => {
    if (transaction.origin === local) return;
    const [from, to] = [area.selectionStart, area.selectionEnd];
    const scroll = area.scrollTop;
    const moved = [from, to];
    let index = 0;
    for (const { retain = 0, insert = '', delete: removed = 0 } of event.delta) {
      index += retain;
      area.setRangeText(insert, index, index + removed);
      for (const [which, caret] of moved.entries()) { // what comes in at the caret stands behind it
        if (caret > index) moved[which] = Math.max(index, caret - removed) + insert.length;
      }
      index += insert.length;
    }
    if (area.value !== text.toString()) area.value = text.toString(); // a textarea knows no carriage return
    if (document.activeElement === area) area.setSelectionRange(...moved);
    area.scrollTop = scroll;
  });

  return {
    receive(apply) {
      if (composing) held.push(apply);
      else apply();
    },
  };
}
