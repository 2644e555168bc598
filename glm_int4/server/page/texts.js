// What the page says, in English and Chinese. Elements name their text in data-text, data-placeholder or data-label.

const TEXTS = {
  en: {
    new: "New chat", settings: "Settings", menu: "Conversations", ask: "Ask something", send: "Send", stop: "Stop",
    system: "System prompt", temperature: "Temperature", topP: "Top-p", maxTokens: "Max new tokens", seed: "Seed",
    official: "the model's", unlimited: "no limit", random: "random", language: "Language", theme: "Colours",
    themeAuto: "as the system", themeLight: "light", themeDark: "dark", apiKey: "API key, if the server asks for one",
    kept: "Conversations and settings stay in this browser.", done: "Done", untitled: "New chat",
    empty: "Ask ChatGLM something.", remove: "Delete", copy: "Copy", copied: "Copied", again: "Again",
    notCopied: "The browser did not allow it: select the text instead",
    waiting: "waiting…", stopped: "stopped", cut: "cut at the limit", dropped: "The oldest messages no longer fit and were left out.",
    tokens: "tokens", perSecond: "tokens/s", first: "first after", lost: "The connection was lost.",
    full: "The server is busy; try again in a moment.", key: "The server asks for an API key: see the settings.",
    noRoom: "The browser's storage is full; delete old conversations.",
  },
  zh: {
    new: "新对话", settings: "设置", menu: "对话列表", ask: "输入问题", send: "发送", stop: "停止",
    system: "系统提示", temperature: "温度", topP: "Top-p", maxTokens: "最多生成 token 数", seed: "随机种子",
    official: "模型默认", unlimited: "不限", random: "随机", language: "语言", theme: "颜色",
    themeAuto: "跟随系统", themeLight: "浅色", themeDark: "深色", apiKey: "API 密钥（如果服务器要求）",
    kept: "对话和设置只保存在这个浏览器里。", done: "完成", untitled: "新对话",
    empty: "向 ChatGLM 提问吧。", remove: "删除", copy: "复制", copied: "已复制", again: "重新回答",
    notCopied: "浏览器不允许复制，请选中文字后复制",
    waiting: "等待中…", stopped: "已停止", cut: "达到长度上限", dropped: "最早的消息已放不下，没有发送。",
    tokens: "个 token", perSecond: "token/秒", first: "首个用时", lost: "连接中断。",
    full: "服务器正忙，请稍后再试。", key: "服务器需要 API 密钥，请在设置中填写。",
    noRoom: "浏览器存储已满，请删除旧对话。",
  },
};

let language = "en";

export function preferredLanguage() {
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function text(name) {
  return TEXTS[language][name];
}

export function speak(chosen) {
  language = chosen in TEXTS ? chosen : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = text(element.dataset.placeholder);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", text(element.dataset.label));
}
