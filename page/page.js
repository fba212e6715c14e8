// The page of app.py. Pictures go to the server one after the other, in the order they were given.
// What comes back is put on the page by textContent, never as HTML.

const $ = id => document.getElementById(id);
const form = $('settings'), list = $('cards'), dialog = $('camera-dialog');
const about = await (await fetch('model')).json();  // what the server says of itself
const cards = [];  // in the order they were given
const given = { camera: 0, pasted: 0 };  // pictures without a name
const round = new Set();  // the cards of which the last line of the status tells
let held = [], waiting = [], isWorking = false, stopper = new AbortController();

const LARGEST = [300, 352];  // pixels to which a small picture is enlarged: width, height
const FALLS = '240 90 0', RISES = '30 90 240';  // as explain.py paints them

const say = text => { $('status').textContent = text; };
const nats = x => x.toLocaleString('en', { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const percent = p => p > .995 ? '> 99 %' : p < 1e-6 ? '< 0.0001 %' :
  `${(100 * p).toLocaleString('en', { maximumSignificantDigits: p < .095 ? 1 : 2 })} %`;

function make(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = text;
  return element;
}

const isStop = error => error.name == 'AbortError';  // while it is sent, or the answer is read

async function ask(path, parameters, file) {  // the answer, or an error that says what is wrong
  if (file.size > about.largest_upload) {
    throw new Error(`it is larger than ${about.largest_upload / 2 ** 20} MB: make it smaller.`);
  }
  let response;
  try {
    const query = new URLSearchParams(parameters);
    response = await fetch(`${path}?${query}`, { method: 'POST', body: file, signal: stopper.signal });
  } catch (error) {
    if (isStop(error)) throw error;
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Error('it cannot be read: of a folder choose the pictures in it.');
    });
    throw new Error('no answer: is app.py still running?');
  }
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

// ------------------------------------------------------------------------------- one picture

class Card {
  constructor(file, name) {
    Object.assign(this, { file, name, answer: null, outcome: '', rank: 0, maps: null });
    Object.assign(this, { chosen: null, word: 0 });  // the word clicked; that pointed at
    this.element = $('card').content.cloneNode(true).firstElementChild;
    this.find('h3').textContent = name;
    this.find('img').src = URL.createObjectURL(file);
    this.find('img').onerror = () => this.isShown(false);
    this.find('img').onload = ({ target }) => {
      this.isShown(true);
      this.enlarge(target);
    };
    this.find('.copy').onclick = () => this.copy();
    this.find('.again').onclick = () => this.isBusy || queue([this]);
    this.find('.explain').onclick = () => this.maps ? this.showMaps(null) : this.explain();
    this.find('.caption').onpointerleave = () => this.caption && this.select(this.chosen);
    this.find('canvas').onpointermove = event => this.readMap(event);
    this.find('canvas').onpointerleave = () => this.tellMap();
    this.find('.caption').onkeydown = event => this.step(event);
  }

  find(selector) { return this.element.querySelector(selector); }
  get caption() { return this.answer?.captions[this.rank]; }
  get isBusy() { return this.element.ariaBusy == 'true'; }

  note(text, kind = '') {
    Object.assign(this.find('.note'), { textContent: text, className: `note ${kind}` });
  }

  isShown(yes) {  // by the browser, whose formats are fewer than the server's
    this.element.classList.toggle('unshown', !yes);
    if (!yes && this.answer && !this.hasPreview) this.preview();
  }

  enlarge(image) {  // a small picture, or none could read its map
    const [width, height] = LARGEST, { naturalWidth, naturalHeight } = image;
    const scale = Math.min(width / naturalWidth, height / naturalHeight);
    if (scale > 1) image.width = naturalWidth * scale;
  }

  async preview() {
    this.hasPreview = true;
    const blob = await (await ask('preview', {}, this.file)).blob();
    URL.revokeObjectURL(this.find('img').src);
    this.find('img').src = URL.createObjectURL(blob);
  }

  async describe(asked) {
    this.note('describing …');
    this.showMaps(null);
    try {
      this.answer = await (await ask('caption', asked, this.file)).json();
    } catch (error) {
      return isStop(error) ? this.end('stopped', 'stopped') : this.end('failed', error.message);
    }
    this.end('described');
    this.show();
  }

  end(outcome, why = '') {  // of waiting
    this.outcome = outcome;
    if (outcome == 'failed') this.answer = null;
    if (outcome != 'described') this.note(why, outcome == 'failed' ? 'error' : '');
    this.element.ariaBusy = false;
    this.element.classList.toggle('brief', !this.answer);
    for (const part of ['.answer', '.copy', '.explain']) this.find(part).hidden = !this.answer;
    this.find('.actions').hidden = false;
  }

  show() {
    const { captions, familiarity, is_unfamiliar } = this.answer;
    const doubt = 'Unlike the pictures the model was trained on: doubt its captions.';
    const usual = `More familiar than ${percent(familiarity)} of the validation pictures.`;
    this.note(is_unfamiliar ? doubt : familiarity === null ? '' : usual, is_unfamiliar && 'unlike');
    this.find('tbody').replaceChildren(...captions.map((caption, rank) => {
      const row = document.createElement('tr'), cell = document.createElement('td');
      cell.append(make('button', caption.text,
        { type: 'button', onclick: () => { this.showMaps(null); this.choose(rank); } }));
      row.append(cell, make('td', percent(Math.exp(caption.log_prob_per_word))),
        make('td', percent(Math.exp(caption.log_prob))));
      return row;
    }));
    this.choose(0);
    this.isShown(!this.element.classList.contains('unshown'));
  }

  choose(rank) {  // one of the captions
    this.rank = rank;
    const { text, words } = this.caption;
    this.find('img').alt = text;
    this.find('tbody').childNodes.forEach((row, i) =>
      row.querySelector('button').setAttribute('aria-pressed', i == rank));
    const parts = [];
    let end = 0;  // of what stands in the caption already
    words.forEach((word, i) => {
      const start = word.text ? text.indexOf(word.text, end) : end;
      parts.push(word.text ? text.slice(end, start) : ' ');
      end = start + word.text.length;
      const button = make('button', word.text || 'end', { type: 'button', tabIndex: i ? -1 : 0 });
      button.className = word.text ? 'word' : 'word end';
      button.style.setProperty('--sure', Math.exp(word.log_prob));
      button.onclick = button.onfocus = () => this.select(this.chosen = i);
      button.onpointerenter = () => this.select(i);
      parts.push(button);
    });
    const tail = make('span', '', { className: 'tail' });  // no end on a line of its own
    tail.append(...parts.splice(-3));
    this.find('.caption').replaceChildren(...parts, tail);
    this.select(this.chosen = null);
  }

  select(index) {  // one of the words of the caption, or null
    this.word = index ?? 0;
    const buttons = this.find('.caption').querySelectorAll('button');
    buttons.forEach((button, i) => {
      button.setAttribute('aria-pressed', i === index);
      button.tabIndex = i == this.word ? 0 : -1;
    });
    if (index === null) {
      return this.find('.rivals').replaceChildren(make('li',
        'Point at a word, or use the arrow keys, to see what else it could have been.'));
    }
    const { text, log_prob, rivals } = this.caption.words[index];
    const item = ([word, nats]) => make('li', `${word || 'end'} ${percent(Math.exp(nats))}`);
    const itself = item([text && `“${text}”`, log_prob]);
    this.find('.rivals').replaceChildren(itself, make('li', 'instead:'), ...rivals.map(item));
    this.tellMap();
  }

  step(event) {  // from word to word
    const to = { ArrowRight: this.word + 1, ArrowLeft: this.word - 1, Home: 0, End: Infinity };
    if (!(event.key in to)) return;
    event.preventDefault();
    const buttons = this.find('.caption').querySelectorAll('button');
    buttons[Math.max(0, Math.min(to[event.key], buttons.length - 1))].focus();
  }

  async copy() {
    await navigator.clipboard.writeText(this.caption.text).then(
      () => say(`Copied: ${this.caption.text}`),
      () => say('The browser does not allow to copy: select the caption instead.'));
  }

  // ------------------------------------------------------------------- what each word saw

  async explain() {
    const button = this.find('.explain'), { caption } = this;
    if (button.ariaDisabled == 'true') return;
    button.ariaDisabled = true;  // disabled, it would lose the focus
    say('Hiding the parts of the picture one by one …');
    try {
      const maps = await (await ask('maps', { tokens: caption.tokens }, this.file)).json();
      if (caption == this.caption) {
        this.showMaps(maps);
        say('The map of a word is on the picture. Choose another word for its map.');
      } else {
        say('Another caption was chosen meanwhile: ask again what each word saw.');
      }
    } catch (error) {
      if (!isStop(error)) say(error.message);
    }
    button.ariaDisabled = false;
  }

  showMaps(maps) {
    if (this.maps && !maps) say('The map is off the picture.');
    this.maps = maps;
    this.find('canvas').hidden = this.find('.legend').hidden = !maps;
    this.find('.picture').classList.toggle('mapped', !!maps);
    this.find('.explain').setAttribute('aria-pressed', !!maps);
    if (!maps) return;
    // One scale for all words; one finer than half a nat would paint what nobody needs to know.
    this.most = Math.max(.5, ...maps.maps.flat(2).map(Math.abs));
    const needs = maps.maps.map(map => Math.max(...map.flat()));
    this.select(this.chosen ??= needs.indexOf(Math.max(...needs)));  // or that with most to show
  }

  get map() { return this.maps.maps[this.word]; }  // (G, G) nats

  tellMap(row = null, column = null) {
    if (!this.maps) return;
    const canvas = this.find('canvas'), side = this.map.length, context = canvas.getContext('2d');
    canvas.width = canvas.height = side;
    this.map.forEach((cells, y) => cells.forEach((fall, x) => {
      context.fillStyle = `rgb(${fall > 0 ? FALLS : RISES} / ${.85 * Math.abs(fall) / this.most})`;
      context.fillRect(x, y, 1, 1);
    }));
    const word = this.caption.words[this.word].text || 'end';
    const change = fall => `${nats(Math.abs(fall))} nats ${fall < 0 ? 'more' : 'less'} likely`;
    const fall = row === null ? Math.max(...this.map.flat()) : this.map[row][column];
    const where = row === null ? 'the part it needs most' : 'this part';
    const text = `“${word}” is ${change(fall)} with ${where} hidden, ` +
      `${change(this.maps.dependence[this.word])} with the whole picture hidden.`;
    this.find('.legend .about').textContent = canvas.ariaLabel = text;
    for (const end of this.find('.legend').querySelectorAll('.most')) {
      end.textContent = nats(this.most);
    }
  }

  readMap({ offsetX, offsetY, target }) {
    const cell = (at, length) =>
      Math.max(0, Math.min(Math.floor(at / length * this.map.length), this.map.length - 1));
    this.tellMap(cell(offsetY, target.clientHeight), cell(offsetX, target.clientWidth));
  }
}

// ------------------------------------------------------------------------------- all pictures

function add(files, name = file => file.name) {
  if (!files.length) return say('That was no picture file: save the picture first.');
  const added = files.map(file => new Card(file, name(file)));
  cards.push(...added);
  list.prepend(...added.map(card => card.element));
  queue(added);
}

function queue(added) {  // describe them, once the settings are right
  if (!isWorking && !held.length) round.clear();
  held.push(...added);
  const wrong = [...form.elements].find(field => !field.checkValidity());
  const why = wrong && `${wrong.labels[0].textContent} must be from ${wrong.min} to ` +
    `${wrong.max}${wrong.step === 'any' ? '' : `, in steps of ${wrong.step}`}.`;
  for (const card of held) {
    round.add(card);
    card.outcome = '';
    card.element.ariaBusy = true;
    card.note(wrong ? `Waiting: ${why}` : 'waiting');
  }
  if (wrong) {
    say(`${why} Then the pictures that wait are described.`);
    if (added.length) wrong.reportValidity();  // focuses it too
  } else {
    const asked = Object.fromEntries(new FormData(form));
    waiting.push(...held.splice(0).map(card => [card, asked]));
  }
  update();
  if (!isWorking && waiting.length) work();
}

async function work() {
  isWorking = true;
  while (waiting.length) {
    const n_waiting = waiting.length + held.length;
    if (round.size > 1) say(`${round.size - n_waiting} of ${round.size} described`);
    const [card, settings] = waiting.shift();
    update();
    await card.describe(settings);
  }
  isWorking = false;
  update();
  summarize();
}

function summarize() {
  const [card] = round;
  if (round.size == 1) {
    const isDescribed = card.outcome == 'described';
    return say(`${card.name}: ${isDescribed ? card.caption.text : card.find('.note').textContent}`);
  }
  const count = outcome => [...round].filter(card => card.outcome == outcome).length;
  const rest = [[count('failed'), 'not'], [count('stopped'), 'stopped'], [held.length, 'waiting']];
  const told = rest.filter(([n]) => n).map(([n, what]) => `, ${n} ${what}`);
  if (round.size) say(`${count('described')} described${told.join('')}`);
}

const stoppedCards = () => cards.filter(card => card.outcome == 'stopped');

function update() {
  const focused = document.activeElement;
  $('stop').hidden = !(waiting.length + held.length);
  $('go-on').hidden = !$('stop').hidden || !stoppedCards().length;
  $('clear').hidden = !cards.length;
  $('empty').hidden = cards.length > 0;
  $('save').hidden = $('key').hidden = !cards.some(card => card.answer);
  if (focused.hidden) [$('stop'), $('go-on'), $('files')].find(each => !each.hidden).focus();
}

function stop() {
  for (const card of [...waiting.map(([card]) => card), ...held]) card.end('stopped', 'stopped');
  waiting = [];
  held = [];
  stopper.abort();
  stopper = new AbortController();
  update();
  if (!isWorking) summarize();
}

function clear() {
  stop();
  round.clear();
  for (const card of cards.splice(0)) URL.revokeObjectURL(card.find('img').src);
  list.replaceChildren();
  say('');
  update();
}

function csv() {  // the columns of predict.py --output captions.csv
  const rounded = number => number === null ? '' : Math.round(number * 1e4) / 1e4;
  const rows = cards.flatMap(({ name, answer }) => (answer?.captions ?? []).map((caption, i) => [
    name, i + 1, caption.text, rounded(caption.log_prob), rounded(caption.log_prob_per_word),
    rounded(answer.familiarity)]));
  rows.unshift(['image', 'rank', 'caption', 'log_prob', 'log_prob_per_word', 'familiarity']);
  const quoted = value => /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  return rows.map(row => row.map(quoted).join(',') + '\r\n').join('');
}

function save() {
  const url = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }));
  make('a', '', { href: url, download: 'captions.csv' }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// ------------------------------------------------------------------------------- ways to give

$('files').onchange = ({ target }) => { add([...target.files]); target.value = ''; };
document.addEventListener('paste', ({ clipboardData }) => {
  const files = [...clipboardData.files];
  if (files.length) add(files, () => `pasted picture ${++given.pasted}`);
});
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    $('drop').classList.toggle('over', kind.startsWith('drag') && kind != 'dragleave');
    if (kind == 'drop') add([...event.dataTransfer.files]);
  });
}

$('camera').onclick = async () => {
  try {
    const video = { facingMode: 'environment', width: { ideal: 1280 } };
    $('shoot').disabled = true;  // until there is something to see
    $('video').srcObject = await navigator.mediaDevices.getUserMedia({ video });
    dialog.showModal();
  } catch {
    say('No camera that may be used: allow it in the browser, or choose a picture.');
  }
};
$('video').onloadedmetadata = () => { $('shoot').disabled = false; };
$('shoot').onclick = () => {
  const canvas = document.createElement('canvas'), video = $('video');
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext('2d').drawImage(video, 0, 0);
  canvas.toBlob(blob => add([blob], () => `camera ${++given.camera}`), 'image/jpeg', .92);
  dialog.close();
};
$('close-camera').onclick = () => dialog.close();
dialog.onclose = () => {
  for (const track of $('video').srcObject.getTracks()) track.stop();
};

$('stop').onclick = stop;
$('go-on').onclick = () => queue(stoppedCards());
$('clear').onclick = clear;
$('save').onclick = save;

// ------------------------------------------------------------------------------- what is there

for (const [name, [least, most]] of Object.entries(about.limits)) {
  Object.assign(form[name], { min: least, max: most, value: about.defaults[name], required: true });
}
form.onsubmit = event => event.preventDefault();
form.oninput = () => { form.beam_size.disabled = form.temperature.value > 0; };
form.oninput();
form.onchange = () => held.length && queue([]);

$('samples').append(...about.samples.map((alt, i) => {
  const item = document.createElement('li'), button = make('button', '', { type: 'button' });
  const image = make('img', '', { src: `samples/${i}.png`, alt, width: 80, height: 80 });
  button.append(image);
  button.onclick = async () =>
    add([await (await fetch(image.src)).blob()], () => `drawn scene ${i + 1}`);
  item.append(button);
  return item;
}));

// The model card's little Markdown: paragraphs, **headings** in them, and a table.
for (const card of about.cards) {
  for (const block of card.trim().split(/\n\n+/).slice(1)) {
    const rows = block.split('\n').filter(row => row.startsWith('|') && !/^\|[-|]+$/.test(row));
    if (rows.length) {
      const table = document.createElement('table');
      for (const row of rows.slice(1)) {
        const [name, value] = row.split('|').slice(1).map(text => text.trim());
        table.insertRow().append(make('th', name, { scope: 'row' }), make('td', value));
      }
      $('model-cards').append(table);
    } else {
      const [, heading, text] = block.match(/^\*\*(.+?)\*\*([^]*)$/) ?? [, '', block];
      const paragraph = make('p', '');
      paragraph.append(make('strong', heading), text);
      $('model-cards').append(paragraph);
    }
  }
}
