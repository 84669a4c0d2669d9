// Drives a running gateway with the official client for Node, unchanged; prints one JSON object, a result for each case.
//
//     NODE_PATH=.venv/conformance-node/node_modules node conformance.cjs BASE_URL MODEL IMAGE_URL
const OpenAI = require("openai");

const [baseURL, model, imageUrl] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const schema = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const picture = [
  { type: "image_url", image_url: { url: imageUrl } },
  { type: "text", text: "What is it?" },
];
const ask = { model, messages: [{ role: "user", content: picture }], max_completion_tokens: 4, temperature: 0 };
const input = [
  { role: "user", content: [{ type: "input_image", image_url: imageUrl, detail: "auto" }, { type: "input_text", text: "What is it?" }] },
];
const respond = { model, input, max_output_tokens: 4, temperature: 0 };
const functionTool = { name: "weather", parameters: schema, strict: true };

const cases = {
  async chat() {
    const answer = await client.chat.completions.create(ask);
    return { text: answer.choices[0].message.content, usage: answer.usage };
  },
  async chat_stream() {
    const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
    let text = "", usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, usage };
  },
  async chat_stream_helper() {
    const answer = await client.chat.completions.stream(ask).finalChatCompletion();
    return { text: answer.choices[0].message.content };
  },
  async tool() {
    const answer = await client.chat.completions.create({
      model, messages: [{ role: "user", content: "weather?" }], seed: 1, max_completion_tokens: 1000,
      tools: [{ type: "function", function: functionTool }], tool_choice: { type: "function", function: { name: "weather" } },
    });
    const call = answer.choices[0].message.tool_calls[0];
    return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
  },
  async structured() {
    const answer = await client.chat.completions.create({
      model, messages: [{ role: "user", content: "where?" }], seed: 1, max_completion_tokens: 1000,
      response_format: { type: "json_schema", json_schema: { name: "place", schema, strict: true } },
    });
    return JSON.parse(answer.choices[0].message.content);
  },
  async responses() {
    const response = await client.responses.create(respond);
    return { text: response.output_text, status: response.status, usage: response.usage };
  },
  async responses_stream() {
    const stream = await client.responses.create({ ...respond, stream: true });
    const types = [];
    let text = "";
    for await (const event of stream) {
      types.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    return { text, first: types[0], last: types.at(-1) };
  },
  async responses_stream_helper() {
    const response = await client.responses.stream(respond).finalResponse();
    return { text: response.output_text, status: response.status };
  },
  async responses_tool() {
    const response = await client.responses.create({
      model, input: "weather?", max_output_tokens: 1000, seed: 1,
      tools: [{ type: "function", ...functionTool }], tool_choice: { type: "function", name: "weather" },
    });
    const call = response.output.find((item) => item.type === "function_call");
    return { name: call.name, arguments: JSON.parse(call.arguments) };
  },
  async input_tokens() {
    return (await client.responses.inputTokens.count({ model, input })).input_tokens;
  },
  async completions() {
    const answer = await client.completions.create({ model, prompt: "hello", max_tokens: 3 });
    return answer.usage.completion_tokens;
  },
  async models() {
    return (await client.models.list()).data.map((card) => card.id);
  },
  not_found: () => refusal(() => client.chat.completions.create({ ...ask, model: "gpt-5" })),
  bad_request: () => refusal(() => client.chat.completions.create({ ...ask, max_completion_tokens: 100_000 })),
  bad_response_request: () => refusal(() => client.responses.create({ ...respond, store: true })),
  bad_stream: () => refusal(() => client.chat.completions.create({ ...ask, stream: true, messages: [] })),
};

async function refusal(request) {
  try {
    await request();
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param, hasId: Boolean(error.requestID) };
  }
  throw new Error("not refused");
}

(async () => {
  const results = {};
  for (const [name, run] of Object.entries(cases)) {
    try {
      results[name] = { ok: await run() };
    } catch (error) {
      results[name] = { failed: String(error.stack ?? error) };
    }
  }
  console.log(JSON.stringify(results));
})();
