// Requests through the npm packages `ai` and `@ai-sdk/openai-compatible`, for tests/loopback/http_api/test_ai_sdk.py.
// Arguments: the folders of both packages, base URL, model, and what to do. Prints one object of JSON.
import { pathToFileURL } from 'node:url'

const [ai, provider, baseURL, model, what] = process.argv.slice(2)
const { generateText, streamText, jsonSchema, tool, isStepCount, Output } = await import(pathToFileURL(`${ai}/dist/index.js`))
const { createOpenAICompatible } = await import(pathToFileURL(`${provider}/dist/index.js`))
const settings = { name: 'edgepp', baseURL, apiKey: 'any', includeUsage: true, supportsStructuredOutputs: true }
const chat = createOpenAICompatible(settings)(model)
const city = { type: 'object', required: ['city'], properties: { city: { type: 'string' } }, additionalProperties: false }
const weather = tool({
  description: 'Tell the weather of a city.',
  inputSchema: jsonSchema(city),
  execute: async ({ city }) => `rain in ${city}`,
})
const common = { model: chat, maxRetries: 0, maxOutputTokens: 24, temperature: 0 }
const agent = { ...common, prompt: 'Weather in Bern?', tools: { weather }, stopWhen: isStepCount(3) }

const acts = {
  async whole() {
    const { text, usage } = await generateText({ ...common, prompt: 'hi' })
    return { text, usage }
  },
  async stream() {
    const result = streamText({ ...common, prompt: 'hi' })
    const pieces = []
    for await (const piece of result.textStream) pieces.push(piece)
    return { text: pieces.join(''), usage: await result.usage }
  },
  async tool() {
    const { text, steps } = await generateText(agent)
    return { text, calls: steps[0].toolCalls.map(({ toolName, input }) => [toolName, input]) }
  },
  async toolStream() {
    const result = streamText(agent)
    await result.consumeStream()
    const [first] = await result.steps
    return { text: await result.text, calls: first.toolCalls.map(({ toolName, input }) => [toolName, input]) }
  },
  async structure() {
    const answer = { type: 'object', required: ['answer'], properties: { answer: { type: 'integer' } } }
    const output = Output.object({ schema: jsonSchema(answer) })
    return { output: (await generateText({ ...common, prompt: '2 + 2', output })).output }
  },
}
console.log(JSON.stringify(await acts[what]()))
