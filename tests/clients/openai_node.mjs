// What programs do with the official npm package; prints what came of it as JSON.
// node openai_node.mjs BASE_URL KEY SCENARIO

import OpenAI from "openai";

const [baseURL, apiKey, scenario] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const model = "rhizome-demo";
const messages = [{ role: "user", content: "What is the capital of France?" }];
const tools = [
  {
    type: "function",
    function: {
      name: "roll",
      strict: true,
      parameters: {
        type: "object",
        properties: { sides: { enum: [6, 20] } },
        required: ["sides"],
        additionalProperties: false,
      },
    },
  },
];
const roll = { model, messages, tools, tool_choice: "required", parallel_tool_calls: false, temperature: 0 };

const scenarios = {
  async whole() {
    const { data, response } = await client.chat.completions.create({ model, messages, temperature: 0 }).withResponse();
    return { text: data.choices[0].message.content, id: response.headers.get("x-request-id"), usage: data.usage };
  },

  async streamed() {
    const stream = await client.chat.completions.create({
      model,
      messages,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, usage };
  },

  async helper() {
    const runner = client.chat.completions.stream({ model, messages, temperature: 0 });
    const deltas = [];
    runner.on("content", (delta) => deltas.push(delta));
    return { text: await runner.finalContent(), deltas };
  },

  async called() {
    const whole = await client.chat.completions.create(roll);
    const runner = client.chat.completions.stream(roll);
    const streamed = (await runner.finalChatCompletion()).choices[0];
    return { whole: whole.choices[0], streamed };
  },

  async tools_run() {
    // The package calls the function and sends back what it returned, until the model answers.
    const sides = [];
    const run = client.chat.completions.runTools(
      {
        model,
        messages: [{ role: "user", content: "What is the weather in Paris?" }],
        temperature: 0,
        tool_choice: { type: "function", function: { name: "roll" } },
        parallel_tool_calls: false,
        tools: [
          {
            type: "function",
            function: {
              ...tools[0].function,
              parse: JSON.parse,
              function: (argument) => {
                sides.push(argument.sides);
                return '{"weather": "sunny", "temperature": 21}';
              },
            },
          },
        ],
      },
      { maxChatCompletions: 2 },
    );
    await run.done();
    return { sides, roles: run.messages.map((message) => message.role) };
  },

  async aborted() {
    const stream = await client.chat.completions.create({
      model,
      messages,
      max_tokens: 1500,
      stream: true,
      ignore_eos: true,
    });
    let chunks = 0;
    for await (const chunk of stream) {
      chunks += chunk.choices.length;
      if (chunks === 5) stream.controller.abort();
    }
    return { chunks };
  },

  async json() {
    const answer = await client.chat.completions.parse({
      model,
      messages,
      temperature: 0,
      response_format: {
        type: "json_schema",
        json_schema: { name: "roll", strict: true, schema: tools[0].function.parameters },
      },
    });
    return JSON.parse(answer.choices[0].message.content);
  },

  async errors() {
    const wrong = {
      temperature: () => client.chat.completions.create({ model, messages, temperature: 9 }),
      model: () => client.chat.completions.create({ model: "no-such-model", messages }),
      key: () => new OpenAI({ baseURL, apiKey: "sk-nobody", maxRetries: 0 }).models.list(),
    };
    const seen = {};
    for (const [name, ask] of Object.entries(wrong)) {
      try {
        await ask();
      } catch (error) {
        seen[name] = [error.constructor.name, error.status, error.code, typeof error.requestID];
      }
    }
    return seen;
  },

  async others() {
    const [default_, floats] = [
      await client.embeddings.create({ model, input: "Paris" }),
      await client.embeddings.create({ model, input: "Paris", encoding_format: "float" }),
    ];
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    const completion = await client.completions.create({ model, prompt: "7 + 5 =", max_tokens: 2, temperature: 0 });
    const response = await client.responses.create({ model, input: messages[0].content, temperature: 0 });
    return {
      distance: Math.max(...floats.data[0].embedding.map((x, i) => Math.abs(x - default_.data[0].embedding[i]))),
      names,
      completion: completion.choices[0].text,
      response: response.output_text,
    };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
